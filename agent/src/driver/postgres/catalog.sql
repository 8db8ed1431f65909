-- One row for each thing of a schema that a migration can change: what it is called, and how it is defined.
-- The session has an empty search path, so every name in a definition is qualified. Nothing here depends on OIDs or on
-- the physical order of columns. Owners, grants, comments and storage settings are left out: they are the operator's,
-- not the release's.
WITH ns AS (
  SELECT n.oid, n.nspname FROM pg_namespace n
  WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname !~ '^rollbackctl_'
    AND NOT EXISTS (SELECT 1 FROM pg_depend d
                    WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
), rel AS (
  SELECT c.*, format('%I.%I', ns.nspname, c.relname) AS name
  FROM pg_class c JOIN ns ON ns.oid = c.relnamespace
  WHERE NOT EXISTS (SELECT 1 FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
), typ AS (
  SELECT t.*, format('%I.%I', ns.nspname, t.typname) AS name
  FROM pg_type t JOIN ns ON ns.oid = t.typnamespace
  WHERE NOT EXISTS (SELECT 1 FROM pg_depend d
                    WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
)
SELECT format('schema %I', nspname) AS key, '' AS definition FROM ns
UNION ALL
SELECT format('extension %I', extname), '' FROM pg_extension
UNION ALL
SELECT 'table ' || name, concat_ws(' ',
    CASE relkind WHEN 'f' THEN 'foreign' WHEN 'p' THEN 'partitioned by ' || pg_get_partkeydef(oid) END,
    CASE WHEN relpersistence = 'u' THEN 'unlogged' END,
    (SELECT string_agg(i.inhparent::regclass::text, ', ' ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = rel.oid),
    -- An interrupted DETACH … CONCURRENTLY. Servers before 14 have no such column.
    (SELECT 'detach pending' FROM pg_inherits i WHERE i.inhrelid = rel.oid AND to_jsonb(i) ->> 'inhdetachpending' = 'true' LIMIT 1),
    CASE WHEN relispartition THEN pg_get_expr(relpartbound, oid) END,
    CASE WHEN relrowsecurity THEN 'row security' END, CASE WHEN relforcerowsecurity THEN 'forced' END)
FROM rel WHERE relkind IN ('r', 'p', 'f')
UNION ALL
SELECT format('column %s.%I', rel.name, a.attname), concat_ws(' ', format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attcollation <> t.typcollation
         THEN (SELECT format('collate %I.%I', cn.nspname, co.collname) FROM pg_collation co
               JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation) END,
    CASE WHEN a.attnotnull THEN 'not null' END,
    -- From 18 on a column can be computed when it is read.
    CASE a.attgenerated WHEN '' THEN 'default ' WHEN 'v' THEN 'generated virtual as ' ELSE 'generated as ' END
        || pg_get_expr(d.adbin, d.adrelid),
    CASE a.attidentity WHEN 'a' THEN 'identity always' WHEN 'd' THEN 'identity by default' END)
FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE rel.relkind IN ('r', 'p', 'f', 'c') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
-- From 18 on NOT NULL has rows here too; the column's line says it already.
SELECT format('constraint %s %I', rel.name, c.conname), pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN rel ON rel.oid = c.conrelid WHERE c.contype <> 'n'
UNION ALL
SELECT 'index ' || rel.name, concat_ws(' ', pg_get_indexdef(i.indexrelid), CASE WHEN NOT i.indisvalid THEN 'invalid' END)
FROM pg_index i JOIN rel ON rel.oid = i.indexrelid
WHERE NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT CASE relkind WHEN 'm' THEN 'materialized view ' ELSE 'view ' END || name, pg_get_viewdef(oid)
FROM rel WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'sequence ' || rel.name, concat_ws(' ', format_type(s.seqtypid, NULL), 'start', s.seqstart, 'increment', s.seqincrement,
    'min', s.seqmin, 'max', s.seqmax, 'cache', s.seqcache, CASE WHEN s.seqcycle THEN 'cycle' END,
    (SELECT format('owned by %s.%I', d.refobjid::regclass, a.attname) FROM pg_depend d
     JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
     WHERE d.classid = 'pg_class'::regclass AND d.objid = rel.oid AND d.refclassid = 'pg_class'::regclass
       AND d.deptype IN ('a', 'i') LIMIT 1))
FROM pg_sequence s JOIN rel ON rel.oid = s.seqrelid
UNION ALL
SELECT format('%s %I.%I(%s)', CASE p.prokind WHEN 'a' THEN 'aggregate' WHEN 'p' THEN 'procedure' ELSE 'function' END,
              ns.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
    CASE WHEN p.prokind = 'a'
         THEN (SELECT concat_ws(' ', a.aggtransfn::text, a.aggfinalfn::text, format_type(a.aggtranstype, NULL), a.agginitval)
               FROM pg_aggregate a WHERE a.aggfnoid = p.oid)
         ELSE pg_get_functiondef(p.oid) END
FROM pg_proc p JOIN ns ON ns.oid = p.pronamespace
WHERE NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
UNION ALL
SELECT format('trigger %s %I', rel.name, t.tgname), concat_ws(' ', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled)
FROM pg_trigger t JOIN rel ON rel.oid = t.tgrelid WHERE NOT t.tgisinternal
UNION ALL
SELECT format('rule %s %I', rel.name, r.rulename), pg_get_ruledef(r.oid)
FROM pg_rewrite r JOIN rel ON rel.oid = r.ev_class WHERE r.rulename <> '_RETURN'
UNION ALL
SELECT format('policy %s %I', rel.name, p.polname), concat_ws(' ', p.polcmd, p.polpermissive,
    'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_policy p JOIN rel ON rel.oid = p.polrelid
UNION ALL
SELECT 'enum ' || name,
    (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = typ.oid)
FROM typ WHERE typtype = 'e'
UNION ALL
SELECT 'domain ' || name, concat_ws(' ', format_type(typbasetype, typtypmod), CASE WHEN typnotnull THEN 'not null' END,
    'default ' || typdefault,
    (SELECT string_agg(format('%I %s', c.conname, pg_get_constraintdef(c.oid)), ', ' ORDER BY c.conname)
     FROM pg_constraint c WHERE c.contypid = typ.oid AND c.contype <> 'n'))
FROM typ WHERE typtype = 'd'
UNION ALL
SELECT 'range ' || name, (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = typ.oid)
FROM typ WHERE typtype = 'r'
UNION ALL
SELECT format('statistics %I.%I', ns.nspname, s.stxname), pg_get_statisticsobjdef(s.oid)
FROM pg_statistic_ext s JOIN ns ON ns.oid = s.stxnamespace
UNION ALL
SELECT format('event trigger %I', evtname), concat_ws(' ', evtevent, evtfoid::regprocedure::text, evtenabled)
FROM pg_event_trigger
