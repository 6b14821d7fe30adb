"""Classification of texts with a trained model."""
