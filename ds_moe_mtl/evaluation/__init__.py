"""What a trained model predicts, and how well."""
