import asyncio
from collections import Counter
from uuid import uuid4
from conftest import *
from recorder import *
from service import db
async def test_p(make_client, owner, monkeypatch):
    monkeypatch.setattr(db,"_ATTEMPTS",1)
    r=Recorder(await make_client(pool_size=20),owner)
    bad=0
    for n in range(100):
        ini={"id":str(uuid4()),"username":f"user{n}","name":"","avatar_url":""}
        a=await asyncio.gather(*(r.record(without(running(),"initiator_id")|{"initiator":ini}) for _ in range(20)))
        c=Counter(x.status for x in a)
        bad+= c!={201:20}
    print("ROUNDS FAILED",bad)
