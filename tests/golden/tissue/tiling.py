"""HistCode's tissue mask and tile coordinates, and BALNMP's region tiles, from their description.

Needs: numpy opencv-python-headless. Written from the published behaviour of
data_processing/create_patches_fp.py (HistCode, after CLAM) and of preprocessing/cut_*.py (BALNMP),
as an oracle for src/tissue and src/tiling.rs.
"""
import cv2
import numpy as np

cv2.setNumThreads(1)


def segment(rgb, level0_size, median=7, threshold=None, close=4, min_area=100, min_hole=3, max_holes=2048):
    """Mask, threshold and (outer, holes) contours in level-0 pixels of one level's pixels."""
    height, width = rgb.shape[:2]
    scale = np.array([level0_size[0] / width, level0_size[1] / height])
    saturation = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[:, :, 1]
    smooth = cv2.medianBlur(saturation, median)
    if threshold is None:
        used, mask = cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU + cv2.THRESH_BINARY)
    else:
        used, mask = cv2.threshold(smooth, threshold, 255, cv2.THRESH_BINARY)
    if close > 0:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((close, close), np.uint8))
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    unit = int(512**2 / (scale[0] * scale[1]))
    to_level0 = lambda ring: (ring[:, 0, :] * scale).astype(np.int32)
    found = []
    parents = hierarchy[0][:, 3] if len(contours) else []
    for i in np.flatnonzero(np.asarray(parents) == -1):
        holes = [contours[j] for j in np.flatnonzero(parents == i)]
        area = cv2.contourArea(contours[i]) - sum(cv2.contourArea(h) for h in holes)
        if area == 0 or area <= min_area * unit:
            continue
        holes = sorted(holes, key=cv2.contourArea, reverse=True)[:max_holes]
        holes = [h for h in holes if cv2.contourArea(h) > min_hole * unit]
        found.append((to_level0(contours[i]), [to_level0(h) for h in holes]))
    return mask, int(used), found


def coordinates(contours, size=256, step=256, select="four-point"):
    """Tile corners of all contours, and how many contours were left out for having one or none."""
    coords, dropped = [], 0
    for outer, holes in contours:
        x0, y0, w, h = cv2.boundingRect(outer)
        kept = []
        for x in np.arange(x0, x0 + w, step):
            for y in np.arange(y0, y0 + h, step):
                cx, cy = x + size // 2, y + size // 2
                shift = int(size // 2 * 0.5) if select == "four-point" else 0
                points = {(cx - shift, cy - shift), (cx + shift, cy + shift),
                          (cx + shift, cy - shift), (cx - shift, cy + shift)}
                inside = any(cv2.pointPolygonTest(outer, (float(a), float(b)), False) >= 0 for a, b in points)
                middle = (float(x + size / 2), float(y + size / 2))
                in_hole = any(cv2.pointPolygonTest(hole, middle, False) > 0 for hole in holes)
                if inside and not in_hole:
                    kept.append([int(x), int(y)])
        if len(kept) > 1:
            coords += kept
        else:
            dropped += 1
    return coords, dropped


def heatmap_mask(contours, size, downsample):
    """Filled contours minus holes at a lower resolution, larger contours first."""
    mask = np.zeros((size[1], size[0]), np.uint8)
    scale = 1 / np.array(downsample)
    scaled = lambda ring: (ring * scale).astype(np.int32)
    for outer, holes in sorted(contours, key=lambda c: cv2.contourArea(scaled(c[0])), reverse=True):
        cv2.drawContours(mask, [scaled(outer)[:, None]], 0, 255, thickness=-1)
        cv2.drawContours(mask, [scaled(h)[:, None] for h in holes], -1, 0, thickness=-1)
    return mask


def region_tiles(rgb, vertices, size=256, max_white=0.3):
    """BALNMP: every tile of a region with its white fraction, and which are kept.

    Corners are relative to the picture; the JPEG round trips of the original are left out.
    """
    vertices = np.array(vertices)
    (x0, y0), (x1, y1) = vertices.min(0), vertices.max(0)
    crop = rgb[y0:y1, x0:x1].copy()
    inside = np.zeros(crop.shape[:2], np.uint8)
    cv2.fillPoly(inside, [(vertices - [x0, y0]).astype(np.int32)], 1)
    crop[inside == 0] = 255
    h, w = crop.shape[:2]
    padded = np.full((-(-h // size) * size, -(-w // size) * size, 3), 255, np.uint8)
    padded[:h, :w] = crop
    tiles = []
    for y in range(0, padded.shape[0], size):
        for x in range(0, padded.shape[1], size):
            tile = padded[y:y + size, x:x + size]
            white = np.sum(tile == 255) / 3 / (size * size)
            tiles.append({"x": int(x0 + x), "y": int(y0 + y), "white": float(white),
                          "kept": bool(white < max_white), "tile": tile})
    return tiles
