import asyncio, time, sys, os, cProfile, pstats
sys.path.insert(0,"/tmp/rec")
from bench_load import line
from conftest import *
from recorder import *
from service.importing import import_stream
async def pieces(d):
    for i in range(0,len(d),65536): yield d[i:i+65536]
async def test_b(database, database_url, settings, owner, sql,client):
    data=b"\n".join(line(i) for i in range(4000)); print("bytes/line",len(data)/4000)
    for n in range(3):
        t=time.perf_counter(); c=time.process_time(); r=await import_stream(database,pieces(data)); e=time.perf_counter()-t
        print("import",r.imported,r.unchanged,r.rejected_total, round(4000/e),"lines/s", "python cpu", (time.process_time()-c)/e)
    p=cProfile.Profile()
    r=Recorder(client,owner)
    c=time.process_time(); t=time.perf_counter()
    for i in range(300): assert (await r.post("",line(i))).status==201
    print("single POST ms", (time.perf_counter()-t)/300*1000, "cpu ms (client+server)", (time.process_time()-c)/300*1000)
    p.enable(); 
    for i in range(300): assert (await r.post("",line(i))).status==201
    p.disable()
    pstats.Stats(p).sort_stats("tottime").print_stats(14)
