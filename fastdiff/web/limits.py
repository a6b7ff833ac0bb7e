"""How much a page may ask for, and how much the server keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """upload_*: of one picture as it arrives. json_bytes: of a form. seconds: one job. pixels: all pictures of a job.

    waiting: jobs of one visit that are not done; queue: of all visits. visits: at once. jobs, pictures: kept for one
    visit, with all they show; uploads: kept for one visit. grace: seconds that a visit is kept while no page listens.
    """

    upload_bytes: int = 2**24
    upload_pixels: int = 2**25
    upload_seconds: float = 60.0
    json_bytes: int = 2**16
    seconds: float = 1800.0
    pixels: int = 2**22
    waiting: int = 4
    queue: int = 16
    visits: int = 8
    jobs: int = 32
    pictures: int = 64
    uploads: int = 12
    grace: float = 60.0
