"""The faults planted in adapters, quantised weights, what engines are kept from, and processes that meet."""

ADAPTERS, MODEL, BUILDING = "adapters.py", "model.py", "building.py"
CONFIG, SCHEMA, DEFAULTS = "config/lora.py", "config/schema.py", "config/trainer_defaults.py"
ENGINES, PROCESSES = "engines.py", "processes.py"

_LORA, _CONFIG, _QUANTISED = (f"tests/unit/test_{name}.py" for name in ("lora", "config_lora", "quantization"))

# (file under rlvr/, old text, new text, description, test file)
BACKEND_FAULTS: tuple[tuple[str, str, str, str, str], ...] = (
    (ADAPTERS, "        lora_dropout=lora.dropout,\n", "", "dropout of adapters left out", _LORA),
    (ADAPTERS, "=saved or None", "=lora.modules_to_save or None", "norm means q_norm too", _LORA),
    (ADAPTERS, 'f".{name}".endswith(f".{wanted}")', "name.endswith(wanted)", "any end of a name", _LORA),
    (ADAPTERS, "if any(modules[name] is head for name in matching)", "if False", "adapter on the head", _LORA),
    (BUILDING, "        name_base(trainer.model, config)\n", "", "base named by a local folder", _LORA),
    (BUILDING, "if is_adapter(path := ", "if False and is_adapter(path := ", "run from an adapter", _LORA),
    (BUILDING, "            keep_small_steps(trainer.model)\n", "            pass\n", "bfloat16 adapters", _QUANTISED),
    (MODEL, "        return model.get_base_model()\n", "        return model.unload()\n", "adapter dropped", _LORA),
    (MODEL, "            quantization_config=_quantization(config),\n", "", "not quantised", _QUANTISED),
    (CONFIG, "lora.dropout > 0 and disables", "False", "dropout without effect", _CONFIG),
    (CONFIG, "lora is None and quantization is not None", "False", "quantised weights trained", _CONFIG),
    (SCHEMA, "self.extrapolation is not None and self.model.lora is not None", "False", "jumps", _CONFIG),
    (DEFAULTS, "if size % (per_device * world_size)", "if size % per_device", "processes forgotten", _CONFIG),
    (ENGINES, "if quantization is not None and (", "if False and (", "quantised weights sharded", _QUANTISED),
    (PROCESSES, '"EADDRINUSE" in reason', "False", "port in use", "tests/distributed/test_joining.py"),
)
