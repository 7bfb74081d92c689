"""The map names every chapter, every arrow has two ends, and links only where there is a file."""

from pathlib import Path

from utils.overview.concept_map import CHAPTERS, LINKS, markdown, mermaid


def test_every_arrow_joins_two_boxes_and_no_box_is_alone() -> None:
    boxes = [concept for chapter in CHAPTERS for concept in chapter.concepts]
    assert len(set(boxes)) == len(boxes)
    ends = {end for link in LINKS for end in link[:2]}
    assert ends == set(boxes)


def test_the_map_is_one_piece() -> None:
    """The document's fault: its language model hangs beside the rest."""
    reached, frontier = set(), [LINKS[0][0]]
    while frontier:
        box = frontier.pop()
        if box not in reached:
            reached.add(box)
            frontier += [b for link in LINKS for b in link[:2] if box in link[:2]]
    assert len(reached) == sum(len(chapter.concepts) for chapter in CHAPTERS)


def test_eight_chapters_with_a_link_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "02_threads.ipynb").touch()
    text = markdown(tmp_path)
    assert len(CHAPTERS) == 8 and text.count("subgraph") == 8
    assert "(02_threads.ipynb)" in text and "(01_overview.ipynb)" not in text
    assert mermaid() in text
