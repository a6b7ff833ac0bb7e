"""What people do with a diffusion model, on top of `fastdiff.sample`: one file an application.

Each has a function that checks its arguments and returns a job, which runs with progress, preview and cancellation and
gives a `Made`: images, and the recipe that makes them again. A model is a `Source`: the bundled one, a checkpoint of
one's own, or a diffusers pipeline.
"""
