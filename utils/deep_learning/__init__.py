"""Chapter 4: parallel training and faster inference. One room an idea.

`collectives`, `training`, `model_parallel`, `document` and `loading` (4.1); `serving` and
`acceleration` (4.2). `digits` and `models` are what all of them train and ask.
"""
