"""One HTML page of one or several runs, which needs nothing but itself."""
