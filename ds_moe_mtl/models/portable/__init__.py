"""A model folder that transformers opens without this package: two files of code travel with it."""
