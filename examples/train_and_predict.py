"""Train on a data set, measure, predict one image and look at its probabilities: the main job in Python, in under a minute.

python examples/train_and_predict.py [DATA]
"""

import sys
import tempfile

import kawara
from kawara.data.sources import load_data

data = sys.argv[1] if len(sys.argv) > 1 else "digits"
with tempfile.TemporaryDirectory() as folder:
    result = kawara.train(data, epochs=30, seed=0, out=f"{folder}/run", quiet=True)
    low, high = result.metrics["top1_ci95"]
    images = f"{result.metrics['num_images']} {result.split} images"
    print(f"{result.model}: {result.metrics['top1']:.1%} of {images} right (95 % interval {low:.1%} – {high:.1%})")

    predictor = kawara.load(result.model_path)  # everything that is needed is in this one file
    held_out = load_data(data, predictor.card.preprocessing, val_fraction=predictor.card.recipe["data"]["val_fraction"]).splits["val"]
    prediction = predictor.predict(held_out.store[0])[0]
    print(f"{held_out.keys[0]} is {predictor.class_names[held_out.labels[0]]}; the model says:")
    for guess in prediction.top:
        print(f"  {guess.score:6.1%} {'█' * round(40 * guess.score)} {guess.label}")
