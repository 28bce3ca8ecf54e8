"""Policy optimisation as pure functions of tensors: advantages, losses, KL estimators.

Rows are completions, and the K completions of a prompt are consecutive rows. Tensors per token are (rows, tokens), with a mask
that is True on the tokens of the completion. What stands outside the mask, NaN included, never reaches a result. Elementwise
functions see no mask; log-ratios from `token_log_ratio` are 0 outside it, and `batch_loss_terms` drops what is there.
"""
