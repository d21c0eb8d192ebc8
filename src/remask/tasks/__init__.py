"""The former address of downstream tasks, for scripts that exports have written: see `remask.downstream`."""
