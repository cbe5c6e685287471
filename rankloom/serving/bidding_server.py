"""Running the bid server: controllers in their processes, recovery, listening, draining."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rankloom.bidding.serve.campaigns import CampaignFile
from rankloom.bidding.serve.service import BidServer, ServiceSettings
from rankloom.bidding.serve.worker import RemoteController, WorkerController
from rankloom.serving.http import bind, key_for


def run(
    controller: str,
    campaigns: CampaignFile,
    state: Path,
    *,
    host: str,
    port: int,
    shadows: Sequence[str] = (),
    settings: ServiceSettings | None = None,
    base_url: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serves bids until interrupted.

    Raises:
        RankloomError: a controller that does not load, a taken port, a damaged or open state folder, or a public address
            without RANKLOOM_API_KEY.
    """
    import uvicorn

    from rankloom.serving.bidding_app import create_app

    api_key = key_for(host)
    listener = bind(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    settings = settings or ServiceSettings()
    engine = replace(settings.engine, base_url=base_url or address, currency=campaigns.currency)
    splits = {own.experiment.controller for own in campaigns.campaigns if own.experiment is not None}
    workers: list[WorkerController] = []
    try:
        started: dict[str, RemoteController] = {}
        for spec in (controller, *shadows, *sorted(splits)):
            if spec not in started:
                say(f"starting the controller {spec}")
                workers.append(WorkerController(spec))
                workers[-1].start()
                started[spec] = workers[-1]
        server = BidServer(
            campaigns, state, started[controller], settings=replace(settings, engine=engine),
            shadows=[started[spec] for spec in shadows if spec != controller],
            others={spec: started[spec] for spec in splits},
        )  # fmt: skip
    except BaseException:
        for worker in workers:
            worker.close()
        listener.close()
        raise
    # one thread bids, others sync and control: hand the interpreter over quickly, and let no collection walk the start-up heap
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    listener.listen(2048)  # whoever reads the address below may connect at once
    say(
        f"{len(server.campaigns)} campaigns, {server.control.controller.name} decides every {1440 / server.n_ticks:g} minutes"
    )
    say(f"bid requests: POST {address}/v1/openrtb/bid")
    say(f"open {address}/   (stop with Ctrl-C)")
    config = uvicorn.Config(
        create_app(server, api_key=api_key), log_level="warning", access_log=False, timeout_graceful_shutdown=10, lifespan="off",
        server_header=False, limit_concurrency=1024, date_header=False,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        server.close()
