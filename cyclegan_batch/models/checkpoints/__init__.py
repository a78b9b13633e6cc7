"""Checkpoints: which file holds a generator, what is in the file, and which network it is for.

`files` finds the file of a path, by names alone (`file_names`, `run_folder`). `loading` returns the
network: it reads what was saved (`content`) into named tensors (`state_dicts`), finds the
generators among them (`choice`), each recognised by one of `families`.
"""
