"""The benchmark's parts: cells, trials, jobs and their order, and the report of what is finished."""
