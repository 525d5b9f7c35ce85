"""The diffusion model: network, denoiser, policy, sampling, checkpoints."""
