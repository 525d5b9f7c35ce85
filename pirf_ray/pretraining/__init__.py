"""Training of base models by denoising score matching."""
