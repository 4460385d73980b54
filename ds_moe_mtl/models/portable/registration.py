"""The portable model among transformers' own, where this package is installed."""


def register_auto_classes() -> None:
    """Let AutoConfig and the AutoModels open portable folders with this package's own code.

    trust_remote_code is then not needed. May be called again.
    """
    import transformers

    from ds_moe_mtl.models.portable import modeling_ds_moe_mtl as code

    config = code.DsMoeMtlConfig
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    sequence = code.DsMoeMtlForSequenceClassification
    transformers.AutoModel.register(config, sequence, exist_ok=True)
    others = (code.DsMoeMtlForTokenClassification, code.DsMoeMtlForQuestionAnswering)
    for model in (sequence, *others):
        getattr(transformers, model.auto_class).register(config, model, exist_ok=True)
