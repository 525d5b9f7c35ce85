"""Parts that envs, pirf_ray and tune share: files, journals, checks, the registry and search ranges."""
