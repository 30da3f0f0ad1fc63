"""A word-level recurrent language model as PyTorch's users write it."""

import torch
from torch import nn

TEXT = """
the cat sat on the mat . the dog sat on the rug . the cat saw the dog . the dog saw the cat .
a bird sat on the mat and the cat saw a bird . the bird saw the dog and the dog sat on the rug .
"""
WORDS = TEXT.split()
VOCABULARY = sorted(set(WORDS))
IDS = torch.tensor([VOCABULARY.index(word) for word in WORDS * 4], dtype=torch.long)


class RNNModel(nn.Module):
    def __init__(self, rnn_type, ntoken, ninp, nhid, nlayers, dropout=0.2, tie_weights=False):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, dropout=dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        if tie_weights:
            self.decoder.weight = self.encoder.weight
        self.init_weights()
        self.rnn_type, self.nhid, self.nlayers = rnn_type, nhid, nlayers

    def init_weights(self):
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, input, hidden):
        emb = self.drop(self.encoder(input))
        output, hidden = self.rnn(emb, hidden)
        decoded = self.decoder(self.drop(output))
        return decoded.view(-1, decoded.shape[-1]), hidden

    def init_hidden(self, bsz):
        zeros = torch.zeros(self.nlayers, bsz, self.nhid)
        return (zeros, zeros.clone()) if self.rnn_type == "LSTM" else zeros


def repackage_hidden(h):
    """Cut the history off: hidden states of the batch before become constants."""
    if isinstance(h, torch.Tensor):
        return h.detach()
    return tuple(repackage_hidden(v) for v in h)


def batchify(data, bsz):
    nbatch = data.shape[0] // bsz
    return data[: nbatch * bsz].view(bsz, -1).t().contiguous()


def get_batch(source, i, bptt):
    seq_len = min(bptt, len(source) - 1 - i)
    return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len].reshape(-1)


def train(model, data, epochs, bptt=5, lr=0.02, clip=0.25):
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    for _ in range(epochs):
        model.train()
        total_loss, batches = 0.0, 0
        hidden = model.init_hidden(data.shape[1])
        for i in range(0, data.shape[0] - 1, bptt):
            inputs, targets = get_batch(data, i, bptt)
            hidden = repackage_hidden(hidden)
            optimizer.zero_grad()
            output, hidden = model(inputs, hidden)
            loss = criterion(output, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            total_loss += loss.item()
            batches += 1
        history.append(total_loss / batches)
    return history


@torch.no_grad()
def write(model, words, temperature=1.0):
    model.eval()
    hidden = model.init_hidden(1)
    input = torch.randint(len(VOCABULARY), (1, 1), dtype=torch.long)
    written = []
    for _ in range(words):
        output, hidden = model(input, hidden)
        word_weights = output.squeeze().div(temperature).exp()
        word_idx = torch.multinomial(word_weights, 1)[0]
        input.fill_(word_idx)
        written.append(VOCABULARY[word_idx])
    return " ".join(written)


def main(rnn_type="LSTM", epochs=20):
    torch.manual_seed(1111)
    model = RNNModel(rnn_type, len(VOCABULARY), 16, 16, 2, tie_weights=True)
    data = batchify(IDS, 4)
    return train(model, data, epochs), write(model, 30, temperature=0.5)


if __name__ == "__main__":
    for kind in ("RNN", "GRU", "LSTM"):
        losses, text = main(kind)
        print(f"{kind}: {losses[0]:.3f} -> {losses[-1]:.3f}: {text}")
