"""Plain pictures in NumPy, for environments that have no renderer: coloured grids, and strokes."""

import numpy as np

PAPER = np.array([250, 249, 246], np.float32)
INK = np.array([[43, 58, 85], [206, 87, 58], [72, 143, 177], [94, 150, 98], [214, 168, 66], [126, 90, 146],
                [120, 120, 120], [190, 110, 140], [60, 120, 110], [160, 140, 110]], np.float32)  # fmt: skip


def grid(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Coloured squares, as large as fit, in the middle of the frame.

    Args:
      cells: [T, rows, columns] of ints; 0 is empty.
    Returns:
      uint8 frames [T, height, width, 3].
    """
    steps, rows, columns = cells.shape
    palette = np.concatenate([PAPER[None] * 0.92, INK]).astype(np.uint8)
    size = max(1, min(height // rows, width // columns))
    cells = cells[:, : height // size, : width // size]
    picture = palette[np.where(cells == 0, 0, (cells - 1) % len(INK) + 1)]
    picture = picture.repeat(size, 1).repeat(size, 2)
    frames = np.empty((steps, height, width, 3), np.uint8)
    frames[:] = PAPER.astype(np.uint8)
    top, left = (height - picture.shape[1]) // 2, (width - picture.shape[2]) // 2
    frames[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return frames


def strokes(lines: np.ndarray, height: int, width: int, *, extent: float, thickness, ink) -> np.ndarray:
    """Straight strokes with round ends, later ones over earlier ones; the origin is in the middle, y points up.

    Args:
      lines: [T, strokes, 4] of x, y at one end and x, y at the other.
      extent: what fits between the middle and the nearest edges, in the units of the lines.
      thickness: [strokes], same units.
      ink: [strokes] indices into INK.
    Returns:
      uint8 frames [T, height, width, 3].
    """
    pixel = 2.0 * extent / min(height, width)
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * pixel
    y = ((height - 1) / 2 - np.arange(height, dtype=np.float32))[:, None] * pixel
    frames = np.empty((len(lines), height, width, 3), np.uint8)
    for frame, strokes_now in zip(frames, np.asarray(lines, np.float32)):
        picture = np.broadcast_to(PAPER, frame.shape)
        for (x0, y0, x1, y1), thick, colour in zip(strokes_now, thickness, ink):
            along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
            along = np.clip(along, 0.0, 1.0)
            distance = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
            cover = np.clip((thick / 2 - distance) / pixel + 0.5, 0.0, 1.0)[..., None]
            picture = picture + cover * (INK[colour] - picture)
        frame[:] = picture
    return frames
