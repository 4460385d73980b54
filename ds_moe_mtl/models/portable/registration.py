"""The portable model among transformers' own, where this package is installed."""


def register_auto_classes() -> None:
    """Let AutoConfig and the AutoModels open portable folders with this package's own code.

    trust_remote_code is then not needed. May be called again.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from ds_moe_mtl.models.portable.configuration_ds_moe_mtl import DsMoeMtlConfig
    from ds_moe_mtl.models.portable.modeling_ds_moe_mtl import DsMoeMtlForSequenceClassification

    AutoConfig.register(DsMoeMtlConfig.model_type, DsMoeMtlConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        auto.register(DsMoeMtlConfig, DsMoeMtlForSequenceClassification, exist_ok=True)
