"""The transformer: Def 1-3 exactly (`theory`), and their practical form (`practical`).

`transformer` is the whole model, `theory` and `practical` its two kinds of layer, `factored` a theory layer of heads of
low rank, `frames` the way into and out of the residual stream. Nothing here trains, acts or reads files.
"""

from icrl.model.factored import FactoredBlock, HeadGroup
from icrl.model.practical import PracticalBlock
from icrl.model.sparse import SparseMap
from icrl.model.theory import TheoryBlock, clip
from icrl.model.transformer import Transformer

__all__ = ["FactoredBlock", "HeadGroup", "PracticalBlock", "SparseMap", "TheoryBlock", "Transformer", "clip"]
