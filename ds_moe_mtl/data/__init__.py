"""From files and hubs to super-batches."""
