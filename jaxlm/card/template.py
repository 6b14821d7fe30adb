"""A new card: headings as in Hugging Face's template, generated parts as {{name}}, and what the authors have to write marked as such."""

FILL = "**To be filled in by the authors:**"

TEMPLATE = f"""<!--
The parts between "jaxlm:begin" and "jaxlm:end" are generated, and renewed when the card is written again. All else is yours and stays,
the metadata at the top too. A generated part that you change is yours from then on; empty it to have it generated again.
-->

# Model Card for {{{{name}}}}

{{{{summary}}}}

## Model Details

### Model Description

{{{{description}}}}

- **Developed by:** {FILL} names, organisation
- **Language(s) (NLP):** {FILL} the languages of the training data (and as `language:` in the metadata at the top)
- **License:** {FILL} the license of the weights (and as `license:` in the metadata at the top)

### Model Sources

- **Repository:** {FILL} if there is one
- **Paper:** {FILL} if there is one

## Uses

### Direct Use

{FILL} what the model was made for, and for whom. As it is, a pretrained model continues, fills in or encodes text like that of its
training data.

### Downstream Use

{FILL} what it may be fine-tuned for. Fine-tuned, it needs an evaluation of its own on that task.

### Out-of-Scope Use

{FILL} uses that you advise against. It was not made for decisions about people, for advice in medicine, law or finance, or as a source of
facts: nothing here checks that what it writes is true.

## Bias, Risks, and Limitations

- It reproduces what its training data holds: errors, stereotypes and insults included, in the proportions of its sources.
- It may repeat passages of the training data word for word, names and personal data among them.
- What it writes or predicts may be fluent and wrong. Its loss says how well it predicts text like its validation split, no more.
- Languages, subjects and forms of text that the sources hold little of are served badly.

{FILL} what is known about the data, and what was tested.

### Recommendations

Users should be made aware of these risks. Before the model is put to use, test it on that use, with those that it will affect in mind.

## How to Get Started with the Model

{{{{usage}}}}

## Training Details

### Training Data

{{{{data}}}}

{FILL} where the sources come from, who wrote them, their licenses, and what was removed from them.

### Training Procedure

#### Preprocessing

{{{{tokenizer}}}}

#### Training Hyperparameters

{{{{hyperparameters}}}}

#### Speeds, Sizes, Times

{{{{speed}}}}

## Evaluation

### Testing Data, Factors & Metrics

{{{{testing}}}}

### Results

{{{{results}}}}

{{{{curves}}}}

## Environmental Impact

{{{{hardware}}}}

- **Cloud Provider and Compute Region:** {FILL} where it was trained
- **Carbon Emitted:** {FILL} such as by [Lacoste et al. (2019)](https://arxiv.org/abs/1910.09700)

## Technical Specifications

### Model Architecture and Objective

{{{{architecture}}}}

### Software

{{{{software}}}}

### Reproducing

{{{{reproducing}}}}

## Citation

{FILL} how to cite the model

## Model Card Contact

{FILL} whom to write to
"""
