"""What a finished run says: routes, correlations, reports."""
