import sys; sys.path.insert(0,'/work/main/tests/rewrite'); sys.path.insert(0,'/work/main/tests')
import random, pytest
from test_server_accepts import *
class G(Grammar):
    def atom(self):
        return self.one("'x'","NULL","$1","$2::text","5","lower('é')","random()::text","(SELECT sku FROM items LIMIT 1)","'a' || $1","coalesce(NULL,$2)","(SELECT max(note) FROM orders)","'é' /* ) */","now()")
    def src(self,n):
        k=self.rng.random()
        if k<.25: return "VALUES "+", ".join("("+", ".join(self.one(self.atom(),self.atom(),"DEFAULT") for _ in range(n))+")" for _ in range(self.rng.randint(1,3)))
        if k<.35: return f"SELECT * FROM (SELECT {', '.join(self.atom() for _ in range(n))}) q"
        if k<.42 and n==2: return self.one("TABLE items","(TABLE items)","SELECT * FROM items ORDER BY 1","SELECT i.*  FROM items i")
        if k<.5 and n>1: return f"SELECT q.*, {self.atom()} FROM (SELECT {', '.join(self.atom() for _ in range(n-1))}) q"
        if k<.6: return f"{self.sel(n)} {self.one('UNION','UNION ALL','EXCEPT')} {self.one('('+self.sel(n)+' LIMIT 1)',self.sel(n),'VALUES ('+', '.join(self.atom() for _ in range(n))+')')}"
        return self.one("{}","({})","WITH w AS (SELECT 1) {}").format(self.sel(n)+self.one(""," ORDER BY 1"," LIMIT 1"," FOR UPDATE", " OFFSET 0"))
    def sel(self,n):
        t,names=self.table(); al=names[0]
        items=[self.one(self.atom(),f"{al}.{self.one('id',self.state,'note')}",self.atom()+" AS q1") for _ in range(n)]
        return f"SELECT {self.one('','','','DISTINCT ')}{', '.join(items)} FROM {t}{self.where(names)}"
    def insert(self):
        cols=self.rng.sample(["id",self.state,"note"],self.rng.randint(1,3)); n=len(cols)
        listed=self.one(f" ({', '.join(cols)})",f" ({', '.join(cols)})","")
        return f"INSERT INTO {self.one('orders','public.orders','orders AS o')}{listed} {self.src(n)}{self.one('',' ON CONFLICT DO NOTHING')}{self.one('',' RETURNING *')}"
@pytest.mark.parametrize("side", ["old","new"])
async def test_more(database, side):
    database.sql(SCHEMA.replace("{column}", "status" if side == "old" else "state"))
    planner = Planner([ORDERS], side)
    g = G(random.Random("more"+side), "status" if side == "old" else "state")
    n=d=0; more={}
    async with database.connection(statement_cache_size=0) as mig, database.connection(statement_cache_size=0) as plain:
        await plain.execute("SET search_path = plain")
        for _ in range(3000):
            sql=g.insert(); plan=planner.plan(sql.encode())
            if plan.refusal or not any("becomes a derived" in e for e in plan.explanations): continue
            n+=1
            exp=await described(plain, sql.replace("public.","plain."))
            got=await described(mig, plan.text.decode())
            fb=await described(mig, plan.fallback.text.decode())
            if isinstance(exp,str):
                if not isinstance(got,str): more[exp]=more.get(exp,0)+1; more[exp+"sql"]=sql
            else:
                d+=1
                if got!=exp: print("DIFF",exp,got,"\n",sql,"\n",plan.text.decode())
                assert fb==exp or fb=="42601", (fb,exp,sql,plan.fallback.text)
    print(side,n,d,more)
