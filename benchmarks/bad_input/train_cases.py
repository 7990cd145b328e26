"""What is wrong with a training: names, values, data, weights."""

from __future__ import annotations

from benchmarks.bad_input.case import Case, of_train

NAMES = of_train(
    ("model=resnet20_cifr", "model 'resnet20_cifr'", "'resnet20_cifar'", "model.name="),
    ("model.name=resnet20_cifr", "model 'resnet20_cifr'", "'resnet20_cifar'"),
    ("model=[resnet18,nope]", "model 'nope'", "resnet20_cifar"),
    ("model.name=resnet18.nope", "model.name=resnet18.nope", "Invalid pretrained tag"),
    ("quant=dorifa", "quant 'dorifa'", "'dorefa'"),
    ("quant.quantizer=dorifa", "quantizer 'dorifa'", "'dorefa'"),
    ("quant/controller=papr", "quant/controller 'papr'", "'paper'"),
    ("quant.controller.kind=share", "controller kind 'share'", "'shared'"),
    ("quant.controller.pool=max", "controller pool 'max'", "mean"),
    ("quant.choice_gradient=exakt", "choice_gradient 'exakt'", "'exact'"),
    ("data=cifar", "data 'cifar'", "'cifar10'", "'cifar100'"),
    ("data.damaged=ignore", "data.damaged 'ignore'", "skip", "stop"),
    ("data.corruption=2", "data.corruption", "in [0, 1]"),
    ("experiment=nope", "experiment 'nope'"),
    ("optim=sdg", "optim 'sdg'", "'sgd'"),
    ("optim.name=sgdd", "optimizer 'sgdd'", "'sgd'"),
    ("optim.schedule=cosin", "schedule 'cosin'", "'cosine'"),
    ("loss.penalty=bit_flop", "penalty 'bit_flop'", "'bit_flops'"),
    ("loss=3", "loss '3'", "bit_flops", "mean_width"),
    ("logger=wandbb", "logger 'wandbb'", "'wandb'"),
    ("logger.name=wandbb", "logger 'wandbb'", "'wandb'"),
    ("logger=wandb logger.mode=of", "logger.mode 'of'", "'offline'"),
    ("trainer.precision=fp16", "precision 'fp16'", "'bf16'"),
    ("hydra/launcher=jobib", "hydra/launcher 'jobib'", "'basic'"),
)

SETTINGS = of_train(
    ("optim.lrr=1", "setting 'optim.lrr'", "'optim.lr'"),
    ("trainr.epochs=1", "setting 'trainr.epochs'", "'trainer.epochs'"),
    ("+optim.lrr=1", "setting 'optim.lrr'", "'optim.lr'"),
    ("~optim.lr", "optim.lr", "missing"),
    ("optim.lr", "'optim.lr' has no value", "NAME=VALUE"),
    ("=3", "'=3' has no name", "NAME=VALUE"),
    ("model=3", "model '3'", "resnet20_cifar", "model.name="),
    ("optim=null", "optim 'null'", "sgd"),
    ("optim.lr=[1", "[1"),
    ("quant.controller=paper", "quant.controller is a table", "quant/controller=NAME"),
    ("loss.new=1", "setting 'loss.new'"),
)

TYPES = of_train(
    ("trainer.epochs=many", "trainer.epochs", "'many'", "Integer"),
    ("trainer.epochs=1.5", "trainer.epochs", "'1.5'", "Integer"),
    ("trainer.epochs=null", "trainer.epochs", "None"),
    ("optim.lr=fast", "optim.lr", "'fast'", "Float"),
    ("optim.lr=nan", "optim.lr is nan", "finite"),
    ("loss.alpha=inf", "loss.alpha is inf", "finite"),
    ("data.mean=[nan]", "data.mean is nan", "finite"),
    ("trainer.channels_last=perhaps", "trainer.channels_last", "'perhaps'", "bool"),
    ("data.mean=0.5", "data.mean: takes a list"),
    ("quant.widths=[two]", "'two' is not a precision", "'w4a8'"),
    ("quant.widths=[2.5]", "width 2.5 is not an integer", "(2, 3, 4)"),
    ("quant.widths=3", "quant.widths: takes a list", "quant.widths=[3]"),
    ("quant.widths=two", "quant.widths: takes a list", "quant.widths=[3]"),
)

RANGES = of_train(
    ("quant.widths=[]", "widths is empty", "(2, 3, 4)"),
    ("quant.widths=[4,2]", "widths (4, 2)", "ascending", "(2, 4)"),
    ("quant.widths=[3,3]", "widths (3, 3)", "without repeats", "(3,)"),
    ("quant.widths=[0,2]", "width 0", "1 to 16"),
    ("quant.widths=[2,17]", "width 17", "1 to 16"),
    ("quant.widths=[32]", "width 32", "quant=none", "1 to 16"),
    ("quant.static_width=40", "width 40", "1 to 16"),
    ("quant.controller.hidden=0", "controller hidden 0", "at least 1"),
    ("quant.controller.dropout=1", "controller dropout 1.0", "[0, 1)"),
    ("quant.controller.tau=0", "controller tau", "above 0"),
    ("quant=pact quant.options.alpha_init=-1", "alpha_init -1", "above 0"),
    ("quant=smart_deal quant.widths=[8]", "at least 2 bits and at most 5", "not 8"),
    ("quant=smart_deal quant.weight.options.sparsity=1", "sparsity 1", "from 0 to below 1"),
    ("quant=smart_deal quant.weight.options.rows=0", "rows 0", "a number from 1"),
    ("model=vgg16_cifar quant=none", "vgg16_cifar cannot take images of 8 x 8"),
    ("quant.parameter_decay=-1", "quant.parameter_decay", "not be negative"),
    ("trainer.epochs=-1", "trainer.epochs -1"),
    ("trainer.ema=2", "trainer.ema 2.0", "(0, 1)"),
    ("seed=-1", "seed -1", "0"),
    ("optim.lr=-1", "optim.lr -1.0", "above 0"),
    ("optim.momentum=1", "optim.momentum 1.0", "[0, 1)"),
    ("optim.weight_decay=-1", "optim.weight_decay", "not be negative"),
    ("optim.clip_grad=0", "optim.clip_grad 0.0", "null for none"),
    ("optim.schedule=step optim.decay_epochs=0", "optim.decay_epochs 0", "above 0"),
    ("loss.alpha=-1", "loss.alpha -1.0", "not be negative"),
    ("loss.mutual_information=-1", "loss.mutual_information -1.0", "not be negative"),
    ("loss.mutual_information_until=2", "loss.mutual_information_until 2.0", "in [0, 1]"),
    ("loss.distillation=-1", "loss.distillation -1.0", "not be negative"),
    ("loss.label_smoothing=1", "loss.label_smoothing 1.0", "[0, 1)"),
    ("data.batch_size=0", "data.batch_size", "at least 1"),
    ("data.size=0", "data.size", "at least 1"),
    ("data.size=100000", "data.size 100000", "at most 256"),
    ("data.workers=-1", "data.workers", "not be negative"),
    ("data.val_fraction=1", "data.val_fraction", "[0, 1)"),
    ("data.std=[0]", "data.std", "above 0"),
)

CONTRADICTIONS = of_train(
    ("quant.shared_until=layr1", "split point 'layr1'", "'layer1'"),
    ("quant.shared_until=layer3", "split point 'layer3' leaves nothing to route", "earlier"),
    ("quant.shared_until=linear", "split point 'linear'", "[N, C, H, W]", "earlier"),
    ("quant.shared_until=null", "shared controller", "name it in shared_until"),
    ("quant.full_precision=[stem*]", "full_precision layer 'stem*'", "conv1"),
    ("quant.full_precision=[*]", "no layer is left to quantize", "full_precision"),
    ("quant.static=[nope]", "static layer 'nope'"),
    ("loss.target_bits=9", "target_bits=9 cannot be reached", " from ", " to ", " bits"),
    ("+quant.options.alfa=1", "quant.options", "'alfa'"),
    ("model.name=inception_v3", "inception_v3 cannot take images of 8 x 8", "data.size"),
    ("+model.args.depth=3", "model.args does not fit resnet20_cifar", "'depth'"),
    ("+model.args.num_classes=3", "model.args does not fit", "'num_classes'"),
    ("model=resnet18 +model.args.features_only=true", "resnet18 does not return class scores"),
    ("+model.args.checkpoint_path=seven.pt", "model.args.checkpoint_path", "model.checkpoint_path"),
    ("model.pretrained=true", "no pretrained weights for resnet20_cifar"),
    ("model.pretrained=true model.checkpoint_path=seven.pt", "model.pretrained", "give one"),
    ("loss.distillation=1", "loss.distillation needs", "model.checkpoint_path=FILE"),
    ("optim.warmup_epochs=5000", "optim.warmup_epochs 5000", "less than trainer.epochs"),
    ("optim.lr=1e30 quant=none", "not finite", "lower optim.lr"),
    ("trainer.device=gpu", "trainer.device 'gpu' is unknown", "auto, cpu, cuda"),
    ("data.mean=[0.5,0.5] data.std=[1,1]", "2 values", "1 channel"),
    ("data.mean=[0.5,0.5]", "data.mean has 2 values and data.std has 1"),
    ("data.val_fraction=0.001", "data.val_fraction", "each part needs at least one image"),
    ("hydra.run.dir=trained seed=5", "trained holds a run with", "choose another"),
    ("hydra.run.dir=text.pt", "text.pt"),
)
CONTRADICTIONS.append(
    Case("trainer.device=cuda", ("'cuda' is not there", "0 GPUs"), without_gpu=True)
)

_TABLE = "cost=table loss.cost_options.entries="
COSTS = of_train(
    ("cost=enrgy", "cost 'enrgy'", "'energy'"),
    ("loss.cost=enrgy", "cost 'enrgy'", "'energy'"),
    ("cost=energy loss.cost_options.exponent=-1", "exponent -1", "from 0"),
    ("cost=energy +loss.cost_options.exponnt=2", "option of cost 'energy' 'exponnt'", "'exponent'"),
    ("cost=energy loss.cost_options.sparsity=share.csv", "sparsity of conv1", "in [0, 1]"),
    ("cost=energy loss.target_bits=9", "target_bits=9 cannot be reached", " from ", " to ", "bits"),
    ("cost=table", "cost 'table' needs entries", "loss.cost_options.entries=FILE"),
    (f"{_TABLE}nowhere.csv", "nowhere.csv cannot be read", "No such file"),
    (f"{_TABLE}text.pt", "text.pt has no rows", "columns"),
    (f"{_TABLE}words.csv", "words.csv, line 2", "'fast' is not a number"),
    (f"{_TABLE}negative.csv", "cost of conv1, 2 is -1", "not be negative"),
    (f"{_TABLE}short.csv quant.widths=[2,4]", "the table of costs lacks layer 'layer1.0.conv1'"),
    (f"{_TABLE}narrow.csv quant.widths=[2,8]", "lacks layer", "at 8; it has 2, 4"),
)

_SEARCH = "search=sensitivity quant.widths=[2,4,8]"
SEARCHES = of_train(
    ("search=sensitivty", "search 'sensitivty'", "'sensitivity'"),
    ("search.name=greed", "search 'greed'", "'greedy'"),
    (f"{_SEARCH} quant=none", "quant=none", "choose a quantizer"),
    (f"{_SEARCH} quant.widths=[4]", "no layer with several", "widths=(2, 3, 4)"),
    (f"{_SEARCH} data.val_fraction=0", "held-out images", "data.val_fraction"),
    (f"{_SEARCH} search.images=0", "search.images 0", "at least 1"),
    (f"{_SEARCH} loss.target_bits=1", "target_bits=1 cannot be reached", "from 2.000 to 8.000"),
    (f"{_SEARCH} cost=size loss.target_bits=9", "target_bits=9", "from 2.000 to 8.000"),
    (f"{_SEARCH} search.options.measure=trace", "measure 'trace'", "'gradient'"),
    (f"{_SEARCH} +search.options.mesure=kl", "search 'sensitivity' 'mesure'", "'measure'"),
    (f"{_SEARCH} {_TABLE}short.csv", "the table of costs lacks layer 'layer1.0.conv1'"),
    ("search=greedy search.options.accuracy=2", "accuracy 2", "(0, 1]"),
    ("search=greedy quant.widths=[2,4] loss.target_bits=3", "keeps to no cost", "target_bits"),
    ("search=optuna search.options.trials=0", "trials 0", "from 1"),
    ("search=table search.epochs=0", "search.epochs 0", "at least 1"),
)

_STATIC = "quant=affine quant.widths=[8]"
COMPRESSION = of_train(
    ("prune=magnitud", "prune 'magnitud'", "'magnitude'"),
    ("prune.ratio=0.5", "do nothing by themselves", "prune=magnitude"),
    ("quant=none prune=magnitude prune.ratio=1", "prune.ratio 1.0", "[0, 1)"),
    ("quant=none prune=magnitude prune.scope=all", "prune.scope 'all'", "'global'"),
    ("quant=none prune=magnitude prune.layers={nope:0.5}", "layer 'nope'", "'linear'"),
    ("quant=none prune=keep", "the weights have none", "model.checkpoint_path=FILE"),
    ("prune=magnitude quant=dorefa", "'layer1.0.conv1'", "use lsq or affine"),
    (f"{_STATIC} quant.winograd.tile=3", "winograd tile 3", "2 or 4"),
    ("quant.winograd.tile=4", "routed among several precisions", "quant.widths=[8]"),
    ("model.transforms=[{name:gost}]", "transform 'gost'", "'ghost'"),
    ("model.transforms=[{name:ghost,rato:2}]", "transform 'ghost' 'rato'", "'ratio'"),
    ("model.transforms=[{name:ghost,ratio:1}]", "ratio 1 of ghost", "from 2"),
    (
        "model.transforms=[{name:parallel_groups,groups:3,widen:false}]",
        "'layer1.0.conv1' has 16 channels",
        "3 groups",
    ),
    ("quant=smart_deal quant.weight.options.sparsity=1", "sparsity 1", "below 1"),
    ("quant=codebook +quant.options.keep_zeros=true", "'keep_zeros'", "'keep_zero'"),
)

PLANS = of_train(
    ("quant.plan=nowhere.json", "nowhere.json cannot be read", "No such file"),
    ("quant.plan=text.pt", "text.pt is not JSON"),
    ("quant.plan=plan.json model.name=resnet32_cifar", "another model", "'layer1.3.conv1'"),
)

_FOLDER = "data=imagefolder data.workers=0 data.root="
FOLDERS = of_train(
    ("data=imagefolder", "data.root=PATH"),
    (f"{_FOLDER}nowhere", "data.root nowhere is not a folder"),
    (f"{_FOLDER}text.pt", "data.root text.pt is not a folder"),
    (f"{_FOLDER}empty", "empty has no folder train/", "train/CLASS/*"),
    (f"{_FOLDER}no_test", "no_test has neither a folder test/ nor val/"),
    (f"{_FOLDER}no_classes", "no_classes/train has no class folders"),
    (f"{_FOLDER}empty_class", "class folders without images: eel"),
    (f"{_FOLDER}only_text", "without images: dog"),
    (f"{_FOLDER}flat_test", "flat_test/test has no class folders", "flat_test/val/CLASS"),
    (f"{_FOLDER}one_class", "1 class", "at least 2"),
    (f"{_FOLDER}other_classes", "classes", "differ", "eel"),
    (f"{_FOLDER}good data.size=100000", "GiB in memory", "data.cache=false"),
    (f"{_FOLDER}good data.val_fraction=0.1", "data.val_fraction", "at least one image per class"),
    ("data=cifar10 data.size=32 data.root=empty", "CIFAR10", "data.download=true"),
    ("data=cifar10 data.size=32 data.root=bad_labels", "CIFAR10", "damaged", "download=true"),
    ("data=cifar10 data.root=empty", "CIFAR10 images are 32 x 32", "data.size is 8"),
    ("data._target_=os.system", "data._target_ 'os.system'", "dqnet.data.digits.load"),
)
FOLDERS += [
    Case(f"{_FOLDER}locked_class", ("locked_class/train/cat", "cannot be read"), unprivileged=True),
    Case(f"{_FOLDER}locked_image", ("locked_image/train/cat/0.png",), unprivileged=True),
]

IMAGES = of_train(
    (f"{_FOLDER}cut_png", "cut_png/train/dog/1.png", "data.damaged=skip"),
    (
        f"{_FOLDER}cut_png data.cache=false trainer.epochs=2",
        "cut_png/train/dog/1.png",
        "data.damaged=skip",
    ),
    (f"{_FOLDER}cut_jpeg", "cut_jpeg/train/dog/1.jpg", "truncated"),
    (f"{_FOLDER}text_image", "text_image/train/dog/1.png", "cannot identify"),
    (f"{_FOLDER}empty_image", "empty_image/test/cat/0.png", "cannot identify"),
    (f"{_FOLDER}floats", "floats/train/dog/1.tif", "8 or 16 bits"),
    (f"{_FOLDER}integers", "integers/train/dog/1.tif", "8 or 16 bits"),
    (f"{_FOLDER}broken_link", "broken_link/train/dog/1.png", "No such file"),
    (f"{_FOLDER}cut_png data.damaged=skip data.corruption=0.5 data.cache=false", "data.cache=true"),
    (f"{_FOLDER}broken_link data.damaged=skip", "broken_link/train/dog/1.png", "No such file"),
    (f"{_FOLDER}all_damaged data.damaged=skip", "without images: dog", "left out: 2 damaged"),
)

_SHARDS = "data=shards data.workers=0 data.root="
SHARDS = of_train(
    (f"{_SHARDS}good", "good holds no whole set of shards", "dqnet.data.make_shards"),
    (f"{_SHARDS}cut_shard", "cut_shard/train-00000.tar is missing or not whole", "again"),
    (f"{_SHARDS}cut_index", "cut_index/train.npz is missing or damaged", "again"),
    (f"{_SHARDS}flipped_index", "flipped_index/train.npz is missing or damaged", "again"),
    (f"{_SHARDS}short_labels", "short_labels/train.npz", "shape [8]", "again"),
    (f"{_SHARDS}negative_offset", "negative_offset/train.npz", "offset is out", "again"),
    (f"{_SHARDS}float_shard", "float_shard/train.npz", "float64", "again"),
    (f"{_SHARDS}other_shard", "other_shard/train.npz", "shard is out", "again"),
    (f"{_SHARDS}no_classes_info", "no_classes_info/_info.json", "'class_names'", "again"),
    (f"{_SHARDS}list_info", "list_info/_info.json is damaged", "again"),
)

WEIGHTS = of_train(
    ("model.checkpoint_path=nowhere.pt", "checkpoint nowhere.pt does not exist"),
    ("model.checkpoint_path=empty", "checkpoint empty is a folder", "best.pt"),
    ("model.checkpoint_path=text.pt", "text.pt is not a readable PyTorch checkpoint"),
    ("model.checkpoint_path=half.pt", "half.pt is not a readable PyTorch checkpoint"),
    ("model.checkpoint_path=code.pt", "code.pt", "other Python objects than tensors"),
    ("model.checkpoint_path=list.pt", "list.pt holds a list, not a checkpoint"),
    ("model.checkpoint_path=foreign.pt", "foreign.pt is a checkpoint of another model"),
    ("model.checkpoint_path=seven.pt", "seven.pt classifies 7 classes", "10"),
    ("model.checkpoint_path=nan.pt", "nan.pt has values in 'conv1.weight'", "not finite"),
    ("hydra.run.dir=broken_run", "broken_run/last.pt is not a readable PyTorch checkpoint"),
)
