"""Frames of high dynamic range or wide gamut → what a standard screen shows of them (BT.709, 203 cd/m² at most).

Without this a frame of HDR looks gray and dark to a model that has seen ordinary pictures. PyAV's FFmpeg has no
zscale filter, and its scale filter needs seconds for the table of a tone mapping; so the formulas are here.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

PQ, HLG = 16, 18  # the transfer characteristics SMPTE ST 2084 and ARIB STD-B67, by their numbers in ITU-T H.273
BT2020 = 9  # the primaries of BT.2020, also there
PEAK = 1000.0  # cd/m²: what most films in HDR10 are mastered for, and the nominal screen of HLG (BT.2100)
WHITE = 203.0  # cd/m² of white in HDR (BT.2408), which becomes white here

Floats = npt.NDArray[np.floating[Any]]

_BT2020_TO_BT709 = np.array(  # BT.2087, linear light
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # SMPTE ST 2084


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether a frame with these tags is of high dynamic range or wide gamut."""
    return transfer in (PQ, HLG) or primaries == BT2020


def to_sdr(rgb: npt.NDArray[np.uint16], transfer: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) full-range R'G'B' of BT.2020 primaries → (H, W, 3) uint8 as shown on a screen of BT.709 and BT.1886.

    `transfer`: PQ, HLG, or anything else for standard dynamic range. Highlights above about 90 cd/m² are rolled off
    towards `WHITE` with the curve of BT.2390 (EETF), the largest of the three colours leading, so that hues stay.
    """
    signal = rgb.astype(np.float32) / np.float32(65535)
    if transfer == PQ:
        light = _roll_off(_pq_to_light(signal))
    elif transfer == HLG:
        light = _roll_off(_hlg_to_light(signal))
    else:
        light = signal ** np.float32(2.4)
    shown = np.clip(light @ _BT2020_TO_BT709.T, 0, 1) ** np.float32(1 / 2.4)
    return (shown * 255).round().astype(np.uint8)


def _pq_to_light(signal: Floats) -> Floats:
    power = signal ** np.float32(1 / _M2)
    return 10_000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** np.float32(1 / _M1)


def _light_to_pq(light: Floats) -> Floats:
    power = (light / 10_000) ** np.float32(_M1)
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** np.float32(_M2)


def _hlg_to_light(signal: Floats) -> Floats:
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # BT.2100
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    luminance = scene @ _BT2020_LUMINANCE
    return PEAK * scene * (np.maximum(luminance, 1e-6) ** np.float32(0.2))[..., None]


def _roll_off(light: Floats) -> Floats:
    """cd/m² → in units of `WHITE`, with nothing above 1."""
    brightest = np.minimum(light.max(-1, keepdims=True), PEAK)
    peak, most = (_light_to_pq(np.array(value, np.float32)) for value in (PEAK, WHITE))
    most = most / peak
    value = _light_to_pq(brightest) / peak
    knee = 1.5 * most - 0.5
    t = np.clip((value - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    target = _pq_to_light(np.where(value < knee, value, spline) * peak)
    scaled: Floats = np.minimum(light, PEAK) * (target / np.maximum(brightest, 1e-6)) / WHITE
    return scaled
