"""Several adapters on one base in memory, each under its own name, for probe.serve and probe.chat.

IIS_ADAPTERS is a JSON object: name -> adapter folder, at its end perhaps a name with null: the base itself.
"""

import asyncio
import json
import os
from contextvars import ContextVar
from typing import Any, Literal

ADAPTERS: dict[str, str | None] = json.loads(os.environ.get("IIS_ADAPTERS", "{}"))
ASKED: ContextVar[str] = ContextVar("the name that is to answer")


class InTurn(asyncio.Semaphore):
    """Who answers has the model alone until the answer ends, with the adapter in force that was asked for."""

    def __init__(self, model: Any) -> None:
        super().__init__(1)
        self.model = model

    async def acquire(self) -> Literal[True]:
        taken = await super().acquire()
        if ADAPTERS[ASKED.get()] is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(str([*ADAPTERS].index(ASKED.get())))
        return taken


def load() -> Any:
    """LLaMA-Factory's chat model with the adapters beside its weights; merged, as it does it, they would add up."""
    from llamafactory.chat import ChatModel
    from peft import PeftModel

    chat_model = ChatModel()
    engine = chat_model.engine
    for number, folder in enumerate(filter(None, ADAPTERS.values())):  # in a name torch takes a dot for a path
        if number == 0:
            engine.model = PeftModel.from_pretrained(engine.model, folder, "0").eval()
        else:
            engine.model.load_adapter(folder, str(number))
    engine.semaphore = InTurn(engine.model)
    return chat_model


def application() -> Any:
    """LLaMA-Factory's application, where the model that a request names is the one that answers."""
    from llamafactory.api.app import create_app
    from llamafactory.api.protocol import ChatCompletionRequest, ModelCard, ModelList
    from starlette.responses import JSONResponse

    app = create_app(load())
    routes = {route.path: route for route in app.router.routes}
    chat, models = routes.pop("/v1/chat/completions"), routes.pop("/v1/models")

    async def list_models() -> Any:
        return ModelList(data=[ModelCard(id=name) for name in ADAPTERS])

    async def complete(request: ChatCompletionRequest) -> Any:
        if request.model not in ADAPTERS:
            why = f"no model '{request.model}' here; there are: {', '.join(ADAPTERS)}"
            return JSONResponse({"error": {"message": why, "code": "model_not_found"}}, 404)  # OpenAI's own shape
        ASKED.set(request.model)
        return await chat.endpoint(request)

    app.router.routes = [*routes.values()]
    app.get(models.path, response_model=ModelList, dependencies=models.dependencies)(list_models)
    app.post(chat.path, response_model=chat.response_model, dependencies=chat.dependencies)(complete)
    return app
