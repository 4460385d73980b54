"""Studies: systems compared over seeds and data, one line of evidence per finished run."""
