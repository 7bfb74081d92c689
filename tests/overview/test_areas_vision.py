"""Detection: the tiles cover the canvas, and the boxes do not depend on who looked."""

import numpy as np
import pytest
import torch

from utils.overview.areas import vision
from utils.overview.areas.vision import GRID, STRIDE, WINDOW, Box, boxes, detect, detector, plot


@pytest.mark.parametrize("per_side", [1, 2, 4, 8])
def test_tiles_cover_every_window_once(per_side):
    seen = np.zeros((GRID, GRID), int)
    for rows, columns in vision._cuts(per_side):
        seen[rows.start : rows.stop, columns.start : columns.stop] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("per_side", [2, 8])
def test_tiled_scores_are_the_scores_of_the_whole_canvas(per_side):
    canvas, _ = vision._canvas(np.random.default_rng(5), 20, unseen=True)
    image, model = torch.from_numpy(canvas), detector()
    whole = vision.scores(model, image, range(GRID), range(GRID))
    tiles = [vision.scores(model, image, *cut) for cut in vision._cuts(per_side)]
    torch.testing.assert_close(vision._joined(tiles), whole, rtol=1e-4, atol=1e-5)


def test_a_window_has_the_score_it_would_have_alone():
    canvas, _ = vision._canvas(np.random.default_rng(5), 20, unseen=True)
    image, model = torch.from_numpy(canvas), detector()
    whole = vision.scores(model, image, range(GRID), range(GRID))
    crop = image[7 * STRIDE : 7 * STRIDE + WINDOW, 11 * STRIDE : 11 * STRIDE + WINDOW]
    alone = vision.scores(model, crop, range(1), range(1))[:, 0, 0]
    torch.testing.assert_close(alone, whole[:, 7, 11], rtol=1e-4, atol=1e-5)


def test_canvas_holds_its_digits_apart():
    canvas, placed = vision._canvas(np.random.default_rng(3), 40, unseen=True)
    assert canvas.shape == (vision.SIDE, vision.SIDE)
    assert len(placed) == 40
    for index, box in enumerate(placed):
        assert not any(vision._near(box, other, WINDOW - 1) for other in placed[:index])


def test_boxes_keep_the_best_of_neighbours():
    grid = torch.zeros(11, 20, 20)
    grid[3, 5, 5], grid[8, 5, 6], grid[1, 15, 15] = 0.8, 0.9, 0.7
    found = boxes(grid)
    assert found == (Box(8, 5 * STRIDE, 6 * STRIDE), Box(1, 15 * STRIDE, 15 * STRIDE))


@pytest.mark.parametrize(("workers", "tiles"), [(1, 1), (3, 16)])
def test_same_boxes_for_every_number_of_workers(workers, tiles):
    result = detect(workers=workers, tiles=tiles)
    assert result.found == result.found_one
    assert result.precision > 0.7  # a real detector, not a perfect one
    assert result.recall > 0.7
    assert len(result.contest.trace) == tiles * len(result.canvases)
    assert len(plot(result).axes) == 3
