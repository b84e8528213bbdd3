"""What a request must give: the toy stages one after the other, in this process, without a mesh.

And what a client writes down of what it got: `pictures`, which compares with ==.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from ifmesh import bags, toy
from ifmesh.cascade import IF
from ifmesh.embeds import Embeds
from ifmesh.image import Image, Picture
from ifmesh.protocol import Finished
from ifmesh.request import Request
from ifmesh.stage import Bag, Setup, Stage

Pictures = dict[str, str]
"""SHA-256 (hex, 32 digits) of each picture's file by its stage; of embeddings: of their bytes, under "encoder"."""


def pictures(came: Image | Embeds) -> Pictures:
    if isinstance(came, Embeds):
        return {"encoder": sha256(came.tensor.data).hexdigest()[:32]}
    return {stage: of(picture) for stage, picture in came.stages.items()}


def of(picture: Picture) -> str:
    return sha256(picture.data).hexdigest()[:32]


class Oracle:
    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {s.name: s for s in (toy.Encoder(), toy.StageOne(), toy.StageTwo(), toy.Upscaler(), toy.Guard())}
        for stage in self._stages.values():
            stage.load(Setup(options={"steps": 1}))

    def expected(self, request: Request, frame: bytes) -> Pictures:
        """Of every stage that draws, those that are only previewed included.  frame: what the request brings, b"" for nothing."""
        request = replace(request, stages=True, prompt=request.prompt)
        bag: Bag = bags.decode(frame) if frame else {}
        for name in IF.route(request):
            bag = self._through(name, request, bag)
        published = bags.encode(bag)
        if request.task == "encode":
            return pictures(Embeds.published(request, published))
        return pictures(Image.published(Finished("oracle", "", len(published), request.seed, True, ()), published))

    def _through(self, name: str, request: Request, bag: Bag) -> Bag:
        stage = self._stages[name]
        stage.admit("oracle", request, bag)
        while True:
            for advance in stage.step():
                if advance.output is not None:
                    whole = {**bag, **advance.output}
                    return {blob.name: whole[blob.name] for blob in IF.carries(request, name)}
