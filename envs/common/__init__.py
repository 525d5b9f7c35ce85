"""The ground floor of envs, pirf_ray and tune: files, journals, checks, the registry, search ranges."""
