"""Diffusion models: network, denoiser, policy, sampling, checkpoints."""
