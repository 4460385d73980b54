"""Processes that find each other and end together: rendezvous, pre-flight, watchdog, signals."""
