"""Train the generators that `cyclegan_batch` runs: the full CycleGAN, on unpaired images.

Nothing of it is written yet (see train/README.md). It may import `cyclegan_batch`, never
`cyclegan_export`, and is loaded only by the commands that need it.
"""
