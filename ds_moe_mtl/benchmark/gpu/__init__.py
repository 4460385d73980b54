"""One command for a machine with one GPU: checks and measurements, each part under its limit."""
