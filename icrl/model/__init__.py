"""The transformer: Def 1-3 exactly (`theory`), and their practical form (`practical`).

`transformer` is the whole model, `theory` and `practical` its two kinds of layer, `frames` the way into and out of the
residual stream. Nothing here trains, acts or reads files.
"""

from icrl.model.practical import PracticalBlock
from icrl.model.theory import TheoryBlock, clip
from icrl.model.transformer import Transformer

__all__ = ["PracticalBlock", "TheoryBlock", "Transformer", "clip"]
