"""Fine-tuning a trained model on pairs of one's own."""
