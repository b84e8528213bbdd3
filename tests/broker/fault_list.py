"""The deliberate faults: what is broken, in which of the minds, which text of it, and what takes its place.

When the text is not found any more, the fault is to be written anew.
"""

from __future__ import annotations

FAULTS: dict[str, tuple[str, str, str]] = {
    # the coordinator's mind: levels, not edges
    "strangers are not asked who they are": ("crew", "self._send(peer, Who())", "pass"),
    "the given up are not told to end": ("crew", "self._dismiss(peer, life)", "pass"),
    "a lost Run is not repeated": ("crew", "is None:\n            self._order(job, worker)\n", "is None:\n            pass\n"),
    "a lost Push is not repeated": ("crew", "            self._push(now, job, worker)\n", "            pass\n"),
    "a lost result is not asked for again": ("crew", "                self._publish(now, job, worker)\n", "                pass\n"),
    "a lost bag is not noticed": ("crew", "self._missing(now, worker, self.jobs[job_id])", "pass"),
    "an exit is not noted": ("crew", "self._send(peer, Noted(m.life))", "pass"),
    "a large bag has no more time than a small one": ("crew", " + sum(map(self._bulk, waited)) / self.policy.slowest", ""),
    "who shares its link does not matter": ("crew", "sharing = worker.tasks.keys() | {job.id} | (", "sharing = {job.id} | ("),
    "what else its sender sends does not matter": ("crew", "self.roster.lives[source.life].outputs if source is not None", "set() if True"),
    "one that has come leaves the others no time": ("crew", "job.due = max(job.due, job.pushed", "job.due = max(0.0, job.pushed"),
    "the way round is as short as the straight one": ("crew", " * (2 if job.relayed else 1)", ""),
    "a link that is slower than told is never given more time": ("crew", " * job.starts.get(job.stage, 1)", ""),
    "the worker that was not reached is tried again": ("crew", "job.avoid.add(worker.name)  # the way", "pass  # the way"),
    # the way round
    "nothing goes round": ("dispatch", "if job.pushes > self.policy.transfers or", "if"),
    "there is no fourth try": ("crew", "self.policy.transfers + (job.stage > 0):", "self.policy.transfers:"),
    "the way round is not remembered": ("dispatch", "self._detours[holder.name, worker.name] = now", "pass"),
    "any bag is passed on": ("dispatch", "not known.relayed or known.token != token", "not known.relayed"),
    "rather its class than a worker that can be reached": (
        "dispatch",
        "        usable = [w for w in usable if w.name not in job.avoid] or usable\n"
        "        usable = [w for w in usable if w.hello.numeric == job.classes.get(job.stage)] or usable\n",
        "        usable = [w for w in usable if w.hello.numeric == job.classes.get(job.stage)] or usable\n"
        "        usable = [w for w in usable if w.name not in job.avoid] or usable\n",
    ),
    # checkpoints
    "any checkpoint is taken": ("broker", "or not known.life or known.publishing or known.token != token:", "or not known.life:"),
    "an older checkpoint counts": ("broker", "known.saved.token != token or known.saved.step < step", "True"),
    "another class goes on from it": (
        "dispatch", "(saved.stage, saved.numeric) == (job.stage, worker.hello.numeric)", "saved.stage == job.stage",
    ),
    "another stage goes on from it": (
        "dispatch", "(saved.stage, saved.numeric) == (job.stage, worker.hello.numeric)", "saved.numeric == worker.hello.numeric",
    ),
    "nobody goes on from it": ("dispatch", "            job.resume = saved.step\n", ""),
    "a lost checkpoint is not sent again": (
        "dispatch",
        "        elif job.resume:\n            self._out.append(Restore",
        "        elif job.resume and job.pushes == 1:\n            self._out.append(Restore",
    ),
    "who waits for what is gone waits on": ("dispatch", "if job.resume and not job.received and worker is not None:", "if False:"),
    "checkpoints stay for ever": ("ledger", "self._out.append(Forget(job.id))", "pass"),
    "a checkpoint outlives its stage": ("dispatch", "        worker.done += 1\n        self._spent(job)\n", "        worker.done += 1\n"),
    "a checkpoint of a later stage is thrown away": ("ledger", "if job.saved is not None and job.saved.stage <= job.stage:", "if True:"),
    "what kills is gone on from again": ("dispatch", "if job.saved is not None and job.saved.step == job.resume:", "if False:"),
    "what is raised of is gone on from again": ("crew", "            self._spent(job)  # it may be what it raised of\n", ""),
    "a checkpoint that never comes is kept": ("crew", "            self._spent(job)  # it may be that alone which did not come\n", ""),
    "after a restart checkpoints go nowhere": ("crew", "self._order(job, worker)  # where they go now;", "pass  #"),
    "it begins before its checkpoint is here": ("keeper", " and (self.saved is not None or not self.resume)", ""),
    "it goes on without its checkpoint": ("keeper", "urgent=urgent, saved=task.saved)", "urgent=urgent)"),
    "any checkpoint will do": ("keeper", "elif task.resume == header.step:", "else:"),
    "an early checkpoint is thrown away": (
        "keeper", 'for kind in ("bag", "checkpoint"):\n            if (early', 'for kind in ("bag",):\n            if (early',
    ),
    "that there is no checkpoint is not heard": ("keeper", "                task.resume = m.resume\n", "                pass\n"),
    # fences
    "a task under a stale token goes on": (
        "crew",
        '"""A Beat says that the worker has this task.  May it keep it?"""\n        index = self._index(job, worker)\n'
        "        if index is None or held.token < job.tokens.get(index, NEVER):",
        "index = self._index(job, worker)\n        if index is None:",
    ),
    "a bag under a stale token counts": (
        "crew",
        'Is it to be kept?"""\n        index = self._index(job, worker)\n'
        "        if index is None or held.token < job.tokens.get(index, NEVER):",
        '"""\n        index = self._index(job, worker)\n        if index is None:',
    ),
    "an old beat is believed": ("crew", "if worker is None or m.number <= worker.beat:", "if worker is None:"),
    "any result is stored": ("broker", "known is not None and known.publishing and known.token == token", "True"),
    "every landing counts": ("broker", "if known is not None and self.expects(job, token):", "if known is not None:"),
    # acceptance and endings
    "nothing is booked": ("desk", "self._out.append(Book(m.job, m.request, job.owner))", "pass"),
    "a job is booked anew each time": ("desk", "elif (job := self.jobs.get(m.job)) is not None:", "elif (job := None) is not None:"),
    "endings are forgotten": ("ledger", "self.ended[closed.job] = closed", "pass"),
    "the mesh is never full": ("desk", "self.draining or len(self.jobs) >= self.policy.max_jobs", "self.draining"),
    "deadlines do not matter": ("ledger", "for when in job.deadlines().values():", "for when in ():"),
    "only the whole way has a deadline": ("job", 'found["deadline_queued"] = self.accepted, asked.deadline_queued', "pass"),
    "what has begun still waits": ("job", "if self.begun is None:", "if True:"),
    "each stage begins anew": ("ledger", "if job.begun is None:", "if True:"),
    "after a restart nothing has begun": ("dispatch", "        if index:\n            self._begin(now, job)\n", ""),
    "a restart ends what waits too long, and runs": (
        "vigil", 'if job.id in self._orphans and passed.pop("deadline_queued", None) is not None:', "if False:",
    ),
    "nobody is told to drop what was cancelled": (
        "dispatch",
        "            self._send(worker.peer, Drop(job.id, job.token))\n        self._close(now, job, ending)",
        "            pass\n        self._close(now, job, ending)",
    ),
    # life and death
    "alive is progress": ("crew", "            self._stalled(now, worker)\n", "            pass\n"),
    "silence is not death": ("vigil", "heard = max(worker.seen, self._woke)", "heard = now"),
    "a sleeping coordinator blames the others": ("vigil", "heard = max(worker.seen, self._woke)", "heard = worker.seen"),
    "wedged and silent is left alone": ("vigil", "        if life in self._suspects:\n", "        if False:\n"),
    "nothing is adopted after a restart": ("dispatch", "        if self._orphans:\n            return\n", ""),
    "who was told to end twice is blamed": ("crew", 'm.cause in ("crashed", "stalled")', 'm.cause in ("crashed", "stalled", "ended")'),
    "who drains is given more": ("roster", 'return self.state == "ready" and not (self.leaving', "return not (self.leaving"),
    "a kill from outside is blamed": ("crew", 'own = m.cause in ("crashed", "stalled")', "own = True"),
    "a late witness is not heard": ("crew", "        elif own:", "        elif False:"),
    "who died while no coordinator was there is forgotten": ("crew", "known if ran is None else ran,", "known,"),
    "the books know better than the witness": ("crew", 'f"{m.cause}: {m.detail}", own, ran)', 'f"{m.cause}: {m.detail}", own)'),
    "each coordinator holds a death against it anew": ("broker", "            job.mourned = set(booked.lives)\n", ""),
    "a death is held against it as often as it is told": ("dispatch", "if life not in self.jobs[job_id].mourned:", "if True:"),
    "whose death it was is not journalled": ("dispatch", "Blame(job.id, job.blame, cause, life)", "Blame(job.id, job.blame, cause)"),
    "poison goes on for ever": ("dispatch", "elif job.blame >= self.policy.blames:", "elif False:"),
    "a bad worker is kept": ("dispatch", "if others and len({c[1] for c in crimes}) >= self.policy.aside", "if False"),
    "the only worker of a stage is put aside": ("dispatch", "if others and len(", "if len("),
    "tries are not given back": ("dispatch", "victim.blame = max(0, victim.blame - 1)", "pass"),
    "the reservation of the rehabilitated stays": ("dispatch", "self._unreserve(victim)", "pass"),
    "the dangerous wait behind the harmless": ("dispatch", "elif not picky and not self._reserved:", "elif not picky:"),
    "the dangerous get company": ("roster", "self.full or self.reserved)", "self.full)"),
    # hand-over
    "new work before old": ("dispatch", "for stage in reversed(self.queues):", "for stage in self.queues:"),
    "bags are released too early": ("job", "return self.stage - 1 if self.received", "return self.stage if self.received"),
    "bags are never released": ("dispatch", "        self._trim(job)\n", ""),
    "a lost bag means back to the prompt": ("ledger", "max((i + 1 for i in job.outputs if i < job.stage), default=0)", "0"),
    "the numeric class is nobody's business": ("dispatch", "job.reproducible = False", "pass"),
    "the youngest goes first": ("waiting", "-job.request.priority, job.order, job.ticket", "-job.request.priority, -job.order, job.ticket"),
    # uploads
    "a job is booked before its upload is here": (
        "desk", "elif m.request.upload and self.uploads.sound(m.request.upload) is None:", "elif False:",
    ),
    "every upload is wanted": ("uploads", "return digest in self._wanted and not self.full", "return True"),
    "no upload is wanted": ("uploads", "return digest in self._wanted and not self.full", "return False"),
    "there is always room for one more": ("uploads", "self.size >= self._most or ", ""),
    "an upload that has come is nobody's": (
        "desk", "            self._submit(now, peer, submit, owner)\n        return", "            pass\n        return",
    ),
    "what an upload holds is nobody's business": ("uploads", "and stored.names != request.brings:", "and False:"),
    "the first bag is always empty": ("dispatch", "worker.hello.endpoints, job.request.upload))", "worker.hello.endpoints))"),
    "an upload in use is discarded": ("vigil", "digest not in self.uploads.users and ", ""),
    "uploads are never discarded": ("vigil", "self._out.append(Discard(digest))", "pass"),
    "nobody is told of what cannot be stored": (
        "desk",
        'self._send(peer, Refused(submit.job, reason, detail, self.policy.retry_after if reason == "busy" else 0.0, "upload"))',
        "pass",
    ),
    "uploads go before their time": ("vigil", " and now >= stored.idle + self.policy.upload_keep", ""),
    "what was left behind stays on disk": ("broker", "self._out.append(Discard(digest))", "pass"),
    "after a restart no upload is known": ("broker", "if digest in brought:", "if False:"),
    "a Cancel forgets what waits, and it is said again": (
        "desk",
        "elif m.job not in self.ended and m.job not in self.jobs and (said := self.uploads.withdrawn(m.job, owner)):",
        "elif (said := self.uploads.withdrawn(m.job, owner)) and False:",
    ),
    "others who wait for what was cancelled are not told": (
        "desk", "                    self._submit(now, other, submit, whose)\n", "                    pass\n",
    ),
    "a job whose upload is lost waits for ever": ("broker", 'self._fail(now, known, "error", why)', "pass"),
    "a lost upload counts as here": ("broker", "stored.sound = False", "pass"),
    "a job that has its bag fails for want of it": ("broker", "known.stage == 0 and not known.received", "known.stage == 0"),
    "who says it no more waits for ever": ("vigil", "again = self.uploads.tire(now, self.policy.upload_keep)", "again = None"),
    "the gone wait on": ("broker", "self.uploads.left(peer)", "pass"),
    "what is answered waits on": ("desk", "        self.uploads.settled(peer, m.job)\n", ""),
    # whose it is
    "everybody sees everything": (
        "desk",
        "return found if found is not None and owner in (None, found.owner) else None\n\n    def _over",
        "return found\n\n    def _over",
    ),
    "what has ended is everybody's": (
        "desk",
        "return found if found is not None and owner in (None, found.owner) else None\n\n    def _watch",
        "return found\n\n    def _watch",
    ),
    "who says it again sees it": ("desk", "m.request or owner not in (None, job.owner):", "m.request:"),
    "who says it again sees its end": ("desk", "m.request and owner in (None, closed.owner)", "m.request"),
    "the books are open": ("desk", "jobs = self.jobs if owner is None else", "jobs = self.jobs if True else"),
    "a job is booked as nobody's": ("desk", "Book(m.job, m.request, job.owner)", "Book(m.job, m.request)"),
    "after a restart jobs are nobody's": ("broker", "booked.request, booked.owner)", 'booked.request, "")'),
    "an ending is nobody's": ("ledger", "ending, story, runs, job.owner))", "ending, story, runs))"),
    "anybody withdraws what waits": ("desk", "self.uploads.withdrawn(m.job, owner)", "self.uploads.withdrawn(m.job)"),
    # what is kept
    "nothing is held": ("uploads", "stored.idle = max(stored.idle, until)", "pass"),
    "the first to hold it says for how long": ("uploads", "= max(stored.idle, until)", "= min(stored.idle, until)"),
    "the last to hold it says for how long": ("uploads", "stored.idle = max(stored.idle, until)", "stored.idle = until"),
    "nobody looks after what is held": (
        "ledger", '        self._timer(stored.idle + self.policy.upload_keep, "upload", digest)\n', "        pass\n",
    ),
    "what is brought anew is held no more": ("uploads", "now if before is None else max(now, before.idle)", "now"),
    "a hold is not journalled": (
        "broker", "self._out.append(Hold(beside, self.uploads.stored[beside].names, self.uploads.stored[beside].idle - now))", "pass",
    ),
    "a hold is journalled as the request says": ("broker", "self.uploads.stored[beside].idle - now))", "known.request.keep))"),
    "after a restart nothing is held": ("broker", "for digest in [digest for digest in holds if digest in uploads]:", "for digest in ():"),
    "after a restart what is held is unknown": ("broker", "{digest: hold.names for digest, hold in holds.items()}", "{}"),
    "nobody is told what is kept": ("broker", "known.reproducible, runs, beside))", "known.reproducible, runs))"),
    "nothing is ever kept": ("desk", "return bool(kept(self.jobs[job].request)) and self.uploads.roomy(now, size)", "return False"),
    "what is kept takes all the room": (
        "uploads", "return not self.full and 2 * (sum(held) + size) <= self._most and 2 * len(held) < FILES", "return True",
    ),
    "what was used is no longer held": ("uploads", "        self.hold(digest, now)\n", "        self.stored[digest].idle = now\n"),
    # early pictures
    "nobody is shown anything": ("dispatch", "for job_id in showing:", "for job_id in ():"),
    "previews leave before the bags": (
        "dispatch",
        "        self._assign(now)\n        self._wait()\n"
        "        showing, self._showing = self._showing, {}\n        for job_id in showing:\n"
        "            self._show(job_id)  # behind the bags: they are waited for\n",
        "        for job_id in self._showing:\n            self._show(job_id)\n        self._showing = {}\n        self._assign(now)\n",
    ),
    "the result has a preview": ("ledger", " and job.route[index] != job.request.last_stage", ""),
    "the oldest picture is shown": ("dispatch", "index = max((i for i in job.outputs", "index = min((i for i in job.outputs"),
    "a picture that is drawn anew is shown": ("dispatch", "and known.tokens.get(index) == token", ""),
    "who comes late sees nothing": ("ledger", "            self._showing[job.id] = None\n        if job.id", "        if job.state"),
    "who asks twice is shown it twice": ("ledger", "if previews and peer not in job.lookers:", "if previews:"),
    "the gone look on": ("broker", "job.lookers.discard(peer)", "pass"),
    "a guard that loads is to look": ("dispatch", 'self.roster.usable("guard")', 'self.roster.stages["guard"].values()'),
    # tied jobs
    "tied jobs go on": ("vigil", "self._end(now, job, Cause.CANCELLED, Cancelled(job.id))", "pass"),
    "only news of the job counts as a word": ("broker", "        if peer in self._heard:\n            self._heard[peer] = now\n", ""),
    "the gone were never heard": ("broker", "job.heard = max(job.heard, heard)", "pass"),
    "who could not be heard is blamed": ("vigil", "max(self._woke, job.heard,", "max(job.heard,"),
    "the time without a coordinator counts": (
        "broker", "job.blame, job.queued_at, job.heard = booked.blame, now, now", "job.blame, job.queued_at = booked.blame, now",
    ),
    "a tied job is looked at once": ("vigil", '            self._timer(heard + self.policy.tether, "tether", key)\n', "            pass\n"),
    "a task whose bag is gone is adopted": ("crew", ' and (held.state != "waiting" or self._comes(job, index))', ""),
    "after a restart nobody may wait": ("crew", " or job.id in self._orphans\n\n    def _offered", "\n\n    def _offered"),
    "what was overtaken is waited for": ("crew", "over is not None and job.pushed < worker.came.get(over, 0.0)", "False"),
    "results overtake nothing": ("broker", 'came[""] = max(came.get("", 0.0), known.pushed)', "pass"),
    "bags overtake nothing": ("dispatch", "worker.came[bag.life] = max(worker.came.get(bag.life, 0.0), job.pushed)", "pass"),
    # whose weights are in memory
    "a lost Load is not repeated": (
        "phases", "                    self._send(worker.peer, Load(lease.token))\n", "                    pass\n",
    ),
    "a lost Unload is not repeated": (
        "phases", '        elif lease.state == "ended":\n            self._send(worker.peer, Unload(lease.token))\n', "",
    ),
    "one that does not say what it needs is not asked": ("phases", "self._send(worker.peer, Who())", "pass"),
    "more is lent than there is": ("phases", "if fits([*held, wanted]) and (", "if ("),
    "what is asked back counts as free at once": ("phases", "if fits([*held, wanted]) and (", "if fits([*staying, wanted]) and ("),
    "the silent hold nothing": ("phases", "            lease.silent = now\n", "            del self.leases[worker.life]\n"),
    "the silent hold what they had for ever": (
        "phases", "if lease is not None and now >= lease.silent + self.policy.presumed:", "if False:",
    ),
    "the dead hold what they had": ("crew", "        self._bury(m.life)\n        self._freed(m.life)\n", "        self._bury(m.life)\n"),
    "who leaves holds what it had": (
        "crew", "            self._bury(m.life)\n            self._freed(m.life)\n", "            self._bury(m.life)\n",
    ),
    "one whose name is taken holds what it had": ("crew", "            self._freed(older.life)\n", ""),
    "a phase never ends while it has work": ("phases", "needed[lease.life] or now >= over:", "needed[lease.life]:"),
    "nobody looks when a phase has lasted long enough": ("phases", "                self._look(now, over)\n", "                pass\n"),
    "a phase ends while it has work": ("phases", "if urgent or not needed[lease.life] or now >= over:", "if True:"),
    "the urgent wait for the end of the phase": ("phases", "if urgent or not needed[lease.life]", "if not needed[lease.life]"),
    "the urgent wait for their turn": ("phases", "-priority if priority > busy else inf, turn", "0, turn"),
    "always the first of the cascade": (
        "phases", "(self._places[worker.stage] - self._turns.get(group, -1) - 1)", "self._places[worker.stage]",
    ),
    "who leaves is granted more": ("roster", "not (self.leaving or self.full or self.reserved)", "not (self.full or self.reserved)"),
    "it has to leave with work in hand": ("phases", "lease.settled and known is not None and not known.tasks:", "known is not None:"),
    "what is done does not leave": (
        "phases", "        return any(job.route[job.stage + 1] == worker.stage for job in near)", "        return True",
    ),
    "what others are about to send is not waited for": (
        "phases", "        return any(job.route[job.stage + 1] == worker.stage for job in near)", "        return False",
    ),
    "one whose outbox is full keeps its place": ("phases", "is not None and not worker.full:", "is not None:"),
    "the full are loaded": ("phases", "if not w.full and w.name not in", "if w.name not in"),
    "those put aside are loaded": ("phases", "if not w.full and w.name not in self.roster.aside]", "if not w.full]"),
    "all copies are loaded for one job": (
        "phases",
        "            if not self._lacks(worker.stage, group, held):\n                continue  # another",
        "            if False:\n                continue  #",
    ),
    "after a restart it is lent at once": ("broker", "            self._settled = now + self.policy.grace\n", "            pass\n"),
    "one without its weights is adopted": ("crew", " and self._able(worker) and", " and"),
    "more than there is stays lent": (
        "phases", "            self._leave_memory(lease)\n\n    def _lend", "            pass\n\n    def _lend",
    ),
    "small ones go before large ones for nothing": ("phases", "            if fits([*rest, lease, wanted]):\n", "            if False:\n"),
    "what is needed soonest leaves first": (
        "phases", "-((self._places[lease.stage] - this) % places)", "((self._places[lease.stage] - this) % places)",
    ),
    "nobody hears what the urgent cost": ("phases", "            self._story(now, first, f\"{first.at}: {again}\")\n", ""),
    "what can never fit is taken": ("crew", "m.needs < 0 or (m.needs and m.needs > m.budget)", "False"),
    "who loads for ever is let be": ("vigil", '{"loading": self.policy.loading, "unloading": self.policy.unloading}', "{}"),
    "it loads again what it has": ("keeper", 'if self.state != "swapped" or lease <= self._past:', "if lease <= self._past:"),
    "an old Load counts": ("keeper", 'if self.state != "swapped" or lease <= self._past:', 'if self.state != "swapped":'),
    "any Unload counts": ("keeper", "if lease in (NEVER, self._past) or lease != self._lease:", "if lease in (NEVER, self._past):"),
    "it begins without its weights": ("keeper", 'if self.state not in ("ready", "draining"):', "if False:"),
    "it does not say that it has them no more": (
        "keeper", '        self._lease = NEVER\n        if self.state == "unloading":', '        if self.state == "unloading":',
    ),
    # of whom only their parents speak
    "who is stopped is let be": ("crew", "            self._send(peer, Kill(m.life))\n        while", "            pass\n        while"),
    "whoever has a parent is ended": (
        "crew", "        if m.life in self.roster.lives:\n            return\n        since", "        since",
    ),
    "the coordinator's sleep is their silence": ("crew", "max(since, self._woke) + self.policy.presumed", "since + self.policy.presumed"),
    "who was heard again is ended for what was before": (
        "crew", "        self._unheard.pop(m.life, None)\n        self.roster.add", "        self.roster.add",
    ),
    # the worker's mind
    "a stale bag is taken": ("keeper", "if task.token != header.token or task.whole:", "if task.whole:"),
    "early bags are thrown away": ("keeper", "self._early[header.job, header.token, header.kind] = header, frame", "pass"),
    "a newer grant is ignored": ("keeper", "task is not None and task.token > m.token:", "task is not None and task.token != m.token:"),
    "a pushed bag is forgotten": ("keeper", "kept = self.outbox.get(m.job)\n", "kept = self.outbox.pop(m.job, None)\n"),
    "any Release will do": ("keeper", "if kept is not None and kept.token <= token:", "if kept is not None:"),
    "a silent coordinator is waited for": ("keeper", "out += [Rebuild(), Send(self.hello)]", "pass"),
    "it leaves with its outbox full": ("keeper", "or self.tasks or self.outbox or self._said_bye", "or self.tasks or self._said_bye"),
    "what is dropped runs on": ("keeper", "return [Forget(job, task.token), *self._leave()]", "return self._leave()"),
    "old news of the compute thread count": (
        "keeper", "return task if task is not None and task.token == token else None", "return task",
    ),
    "the outbox is not in the Beat": ("keeper", "for job, k in self.outbox.items()]", "for job, k in ()]"),
    # the client's mind
    "nothing is repeated": ("caller", "out += self._repeats(now)", "pass"),
    "an ending does not answer": (
        "caller",
        "            self._answered(wish)\n            return [Tell(message.job, message)]\n        self._let_go",
        "            return [Tell(message.job, message)]\n        self._let_go",
    ),
    "a cut line is never made anew": ("caller", "return [Rebuild(), Send(Hi())]", "return []"),
}  # fmt: skip
