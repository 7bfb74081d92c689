"""Chapter 2: threads. One room a section.

`life` (2.1), `primitives` (2.2), `schedules` (2.2.4), `bugs` and `classics`, `channels` (2.3).
"""
