"""Registry of the surface's own classes."""

from subquad.nn.registry import Registry

_registry = Registry()
MODULE_REGISTRY = _registry.modules
AVAILABLE_ATTENTIONS = _registry.available
register_cls = _registry.register
get_cls = _registry.get
