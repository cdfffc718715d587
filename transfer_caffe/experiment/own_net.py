"""Read a net of one's own: a prototxt of any age, or a Jinja template of one.

    net = read_own_net("resnet.prototxt.j2", crop=224)

A template may use `crop`, the side of the images, for example for layers that depend on it, and loops for repeated
blocks. Other templates beside it can be included.
"""

from __future__ import annotations

import os
from pathlib import Path

from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError, require_file

ENDINGS = (".prototxt", ".j2")
"""The ends of the names of nets and of templates."""


def read_own_net(path: str | os.PathLike[str], crop: int | None = None) -> NetParameter:
    """Return the net of a prototxt or of a template of one, upgraded to the current format.

    Raise UserError, naming the line, for a template that cannot be rendered and for text that is no net.
    """
    path = Path(path)
    if path.suffix != ".j2":
        return read_net(path)
    import jinja2  # most nets are no templates

    require_file(path, "give the path of a template")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(path.parent), undefined=jinja2.StrictUndefined)
    try:
        text = environment.get_template(path.name).render({} if crop is None else {"crop": crop})
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{error.filename or path}:{error.lineno}: {error.message}") from None
    except jinja2.UndefinedError as error:
        raise UserError(f"{path}: {error.message}; templates may use `crop`, the side of the images") from None
    except Exception as error:  # those of its expressions, such as a division by zero, and of a file that is not UTF-8
        raise UserError(f"{path}: the template cannot be rendered: {type(error).__name__}: {error}") from None
    return upgrade_net(parse_text(text, NetParameter(), f"the net of {path}"), os.fspath(path))
