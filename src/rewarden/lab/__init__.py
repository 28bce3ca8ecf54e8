"""An independent judge of text for experiments: no reward model and no neural network takes part in it."""
