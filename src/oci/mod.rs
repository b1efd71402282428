//! What users wrote (templates, `config.json`) becomes a trusted [`crate::model::ContainerSpec`].
