"""What is wrong with an evaluation or an export: settings, checkpoints, trust."""

from __future__ import annotations

from benchmarks.bad_input.case import of_eval

EVALUATION = of_eval(
    ("", "name a checkpoint", "checkpoint=runs/NAME/best.pt"),
    ("chekpoint=seven.pt", "setting 'chekpoint'", "'checkpoint'"),
    ("checkpoint", "'checkpoint' has no value"),
    ("=3", "'=3' has no name"),
    ("data.batch_size=some", "data.batch_size", "'some'", "Integer"),
    ("checkpoint=seven.pt split=tset", "split 'tset'", "'test'"),
    ("checkpoint=trained trainer.device=gpu", "trainer.device 'gpu' is unknown"),
    ("checkpoint=trained trainer.precision=8", "trainer.precision '8'"),
    ("checkpoint=trained data.batch_size=0", "data.batch_size", "at least 1"),
    ("checkpoint=trained data.damaged=ignore", "data.damaged 'ignore'", "skip"),
    ("checkpoint=trained split=val", "no validation part", "split=test"),
    ("checkpoint=trained output=/dev/null/x", "/dev/null"),
    ("checkpoint=trained budget=1.9", "budget=1.9 cannot be reached", "from 2."),
    ("checkpoint=trained budget=nan", "budget is nan", "finite"),
    ("checkpoint=trained budget=cheap", "budget", "'cheap'", "Float"),
    ("cascade.budget=3", "name a checkpoint", "checkpoint=runs/NAME/best.pt"),
    ("checkpoint=trained cascade.budget=9", "budget=9 cannot be reached", "from 2."),
    ("checkpoint=trained cascade.budget=nan", "cascade.budget is nan", "finite"),
    ("checkpoint=trained cascade.checkpoint=nowhere.pt", "nowhere.pt does not exist"),
    ("checkpoint=trained cascade.checkpoint=trained", "both passes", "cascade.budget=BITS"),
    ("checkpoint=trained cascade.budget=3 curve=true", "cascade is an evaluation", "curve"),
    ("checkpoint=trained cascade.view=miror", "cascade.view 'miror'", "'mirror'"),
    ("checkpoint=trained cascade.combine=sum", "cascade.combine 'sum'", "committee"),
    ("checkpoint=trained cascade.view=mirror cascade.share=2", "cascade.share 2", "[0, 1]"),
    ("checkpoint=trained curve=often", "curve", "'often'"),
    ("checkpoint=trained report=htm", "report 'htm'", "'html'"),
    ("checkpoint=trained report=html report.baselines=[empty]", "empty/summary.json"),
)

EXPORT = of_eval(
    ("checkpoint=trained export=onyx", "export 'onyx'", "'onnx'"),
    ("checkpoint=trained export=onnx export.form=fast", "export.form 'fast'", "'exact'"),
    ("checkpoint=trained export=onnx export.runtime=tvm", "export.runtime 'tvm'", "openvino"),
    ("checkpoint=trained export=onnx export.form=integer", "'conv1'", "quant.first_last=8"),
    ("checkpoint=trained export=qonnx", "QONNX", "dynamic", "form=exact"),
)
CHECKPOINTS = of_eval(
    ("checkpoint=nowhere.pt", "checkpoint nowhere.pt does not exist"),
    ("checkpoint=empty", "checkpoint empty/best.pt does not exist"),
    ("checkpoint=text.pt", "text.pt is not a readable PyTorch checkpoint"),
    ("checkpoint=half.pt", "half.pt is not a readable PyTorch checkpoint"),
    ("checkpoint=cut.pt", "cut.pt is not a readable PyTorch checkpoint"),
    ("checkpoint=code.pt", "code.pt", "other Python objects than tensors"),
    ("checkpoint=foreign.pt", "foreign.pt was not written by train.py"),
    ("checkpoint=future.pt", "future.pt has format 99", "reads format 1"),
    ("checkpoint=lacking.pt", "lacking.pt is not a whole checkpoint", "'image_shape'"),
    ("checkpoint=no_table.pt", "no_table.pt holds a list where its 'config'"),
    ("checkpoint=old.pt", "old.pt holds a configuration of another version", "optim.rate"),
    ("checkpoint=incomplete.pt", "incomplete.pt holds a configuration of another version", "model"),
    ("checkpoint=other_model.pt", "other_model.pt is a checkpoint of another model"),
    ("checkpoint=other_shape.pt", "other_shape.pt is a checkpoint of another model", "must be"),
    ("checkpoint=other_classes.pt", "other_classes.pt classifies 7 classes", "has 10"),
    ("checkpoint=other_names.pt", "other_names.pt calls class 2 'two'", "'2'", "data.root=PATH"),
    ("checkpoint=no_names.pt", "no_names.pt holds a int where its 'class_names'"),
    ("checkpoint=other_images.pt", "other_images.pt is for images of [3, 8, 8]", "[1, 8, 8]"),
    ("checkpoint=no_weights.pt", "no_weights.pt has no weights"),
    ("checkpoint=diverged.pt", "diverged.pt has values in", "not finite"),
)

#: checkpoints that try to have something run, read, written or fetched
TRUST = of_eval(
    ("checkpoint=target_os.pt", "data._target_ 'os.system'"),
    ("checkpoint=target_attribute.pt", "data._target_ 'dqnet.data.folder.os.system'"),
    ("checkpoint=target_timm.pt", "data._target_ 'timm.data.os.system'"),
    ("checkpoint=target_hub.pt", "data._target_ 'torch.hub.load'"),
    ("checkpoint=target_inline.pt", "data._target_ 'torch.utils.cpp_extension.load_inline'"),
    ("checkpoint=target_helper.pt", "data._target_ 'dqnet.data.load.load_data'"),
    ("checkpoint=model_hub.pt", "model 'hf-hub:stranger/resnet18'"),
    ("checkpoint=model_folder.pt", "model 'local-dir:/tmp/stranger'"),
    ("checkpoint=args_weights.pt", "model.args.checkpoint_path is not allowed"),
    ("checkpoint=args_pretrained.pt", "model.args.pretrained is not allowed"),
    ("checkpoint=args_config.pt", "model.args.pretrained_cfg is not allowed"),
    ("checkpoint=args_overlay.pt", "model.args.pretrained_cfg_overlay is not allowed"),
    ("checkpoint=args_target.pt", "model.args does not fit resnet20_cifar", "_target_"),
    ("checkpoint=quantizer.pt", "quantizer 'os.system'", "dorefa"),
    ("checkpoint=options.pt", "'_target_'", "quant.options"),
    ("checkpoint=reference.pt", "data.root=${oc.env:HOME}", "no references"),
    ("checkpoint=download.pt data.root=empty", "CIFAR10", "data.download=true"),
)
