"""Experts that are whole layers, mixed by a route for each task (Ye, Zha and Ren)."""
