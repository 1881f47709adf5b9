-- The table to which imagen writes its ledger, for PostgreSQL 13 or newer and for Supabase.
-- It may be run again at any time: it makes what is missing and keeps every row.

create schema if not exists mai;

create table if not exists mai.imagen_usage (
    id                uuid           primary key default gen_random_uuid(),
    created_at        timestamptz    not null default now(),
    backend           text           not null,
    model             text           not null,
    seed              bigint,
    prompt_hash       text           not null,
    latency_ms        bigint         not null,
    cost_usd_estimate numeric(14, 6),
    caller            text           not null
);

-- A table of these nine columns may be older than imagen. Ours come after them.
alter table mai.imagen_usage add column if not exists outcome           text;
alter table mai.imagen_usage add column if not exists images            integer;
alter table mai.imagen_usage add column if not exists upstream_id       text;
alter table mai.imagen_usage add column if not exists key               text;
alter table mai.imagen_usage add column if not exists cost_usd_micros   bigint;
alter table mai.imagen_usage add column if not exists quoted_usd_micros bigint;
alter table mai.imagen_usage add column if not exists saved_usd_micros  bigint;
alter table mai.imagen_usage add column if not exists predict_seconds   double precision;
alter table mai.imagen_usage add column if not exists tier              text;
alter table mai.imagen_usage add column if not exists parent            uuid;

-- 32 bits of milliseconds are 24 days: a prediction that was left behind can take longer. Only an older table is changed,
-- since every change of a type locks the table.
do $$
begin
    if (select atttypid from pg_attribute
        where attrelid = 'mai.imagen_usage'::regclass and attname = 'latency_ms') <> 'bigint'::regtype then
        alter table mai.imagen_usage alter column latency_ms type bigint;
    end if;
end
$$;

comment on table mai.imagen_usage is
    'One row for each picture that imagen asked for. The prompt itself is never here.';
comment on column mai.imagen_usage.prompt_hash is
    'sha256 of the prompt in hex, or its HMAC-SHA256 where a key is configured.';
comment on column mai.imagen_usage.cost_usd_estimate is
    'Dollars; null where no price is known. cost_usd_micros says the same in millionths, exactly.';

-- Writing a row twice must add nothing, so an id has to be unique, and a uuid.
do $$
begin
    if (select atttypid from pg_attribute
        where attrelid = 'mai.imagen_usage'::regclass and attname = 'id') <> 'uuid'::regtype then
        raise exception 'mai.imagen_usage.id is not of type uuid'
            using hint = 'Rename that table; imagen makes its own beside it.';
    end if;
    if not exists (
        select from pg_index
        where indrelid = 'mai.imagen_usage'::regclass and indisunique and indpred is null and indnkeyatts = 1
          and indkey[0] = (select attnum from pg_attribute
                           where attrelid = 'mai.imagen_usage'::regclass and attname = 'id')
    ) then
        create unique index imagen_usage_by_id on mai.imagen_usage (id);
    end if;
end
$$;

create index if not exists imagen_usage_created_at on mai.imagen_usage (created_at desc);
create index if not exists imagen_usage_caller on mai.imagen_usage (caller);

-- Only its owner reads and writes it, and on Supabase the service role.
alter table mai.imagen_usage enable row level security;
revoke all on mai.imagen_usage from public;
do $$
declare
    outsider text;
begin
    foreach outsider in array array['anon', 'authenticated'] loop
        if exists (select from pg_roles where rolname = outsider) then
            execute format('revoke all on mai.imagen_usage from %I', outsider);
        end if;
    end loop;
    if exists (select from pg_roles where rolname = 'service_role') then
        grant usage on schema mai to service_role;
        grant select, insert on mai.imagen_usage to service_role;
    end if;
end
$$;
