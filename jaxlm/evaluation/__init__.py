"""What a trained model is measured by: windows over texts, sums of log-likelihoods, and the table of the figures."""
