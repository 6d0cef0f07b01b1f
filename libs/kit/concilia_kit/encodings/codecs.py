"""Which codec stands behind which name."""

from __future__ import annotations

from concilia_kit.encodings.base import Codec, is_exact, is_small
from concilia_kit.encodings.float16 import Float16
from concilia_kit.encodings.int8 import Int8
from concilia_kit.encodings.topk import TopK
from concilia_kit.tensorfile import TensorSpec
from concilia_kit.wire.encoding import Encoding, EncodingName


def codec_of(encoding: Encoding, spec: TensorSpec) -> Codec | None:
    """How a tensor's difference is encoded; None where the tensor is sent as it is."""
    if encoding.name is EncodingName.NONE or is_exact(spec):
        return None
    if is_small(spec):
        return Float16()
    match encoding.name:
        case EncodingName.FLOAT16:
            return Float16()
        case EncodingName.INT8:
            return Int8()
        case EncodingName.TOP_K:
            assert encoding.share is not None
            return TopK(encoding.share)
